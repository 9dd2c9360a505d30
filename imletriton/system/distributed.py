"""Several processes that train one run together, one GPU each: `torchrun --nproc-per-node=N -m imletriton fit ...`.

They may be on several machines, which must share the run's folder. All processes hold the same weights, data and
assignments, and each computes its share of the samples of a pool and of the images of a batch. Results are combined
exactly, so that all processes make the same decisions. The first process (rank 0) writes the run's files.
"""

import atexit
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group, as its default arguments would keep that alive
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from imletriton.errors import Fault
from imletriton.system import torchrun

PATIENCE = timedelta(hours=2)  # how long the others wait at most, while the first process measures FID
STORE_PORT = "imletriton/port"  # a key of torchrun's store


@dataclass(frozen=True)
class Group:
    """The processes of a run. With one process, the methods return at once and communicate nothing."""

    rank: int = 0  # the number of this process
    size: int = 1  # the number of processes

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return the slice of `count` rows that this process computes."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def complete(self, rows: Tensor) -> Tensor:
        """Fill in, in place, the rows [n, ...] that other processes have computed besides the `share` of this one."""
        if self.size > 1:
            own = self.share(len(rows))
            rows[: own.start] = 0
            rows[own.stop :] = 0
            dist.all_reduce(rows)  # exact, because only zeros are added to each row
        return rows

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of the values of all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes, with a single message."""
        if self.size > 1:
            message = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(message)
            parts = message.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def least(self, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Find the least values of all processes, float [n], and their indices, int64 [n].

        An index of -1 stands for none. Of equal values, the lowest index is taken.
        """
        if self.size > 1:
            none = torch.iinfo(index.dtype).max
            least = value.clone()
            dist.all_reduce(least, dist.ReduceOp.MIN)
            index = torch.where((value == least) & (index >= 0), index, none)
            dist.all_reduce(index, dist.ReduceOp.MIN)
            value, index = least, torch.where(index == none, -1, index)
        return value, index

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process. All processes must call this."""
        return int(self.total(torch.tensor(int(flag), device=device))) > 0 if self.size > 1 else flag

    def wait(self, device: torch.device) -> None:
        """Wait until all processes have called this.

        When a process ends early, torchrun ends all others, even while one writes a file.
        """
        self.any(False, device)

    def text(self, text: str, device: torch.device) -> str:
        """Return the text of the first process, of at most 4096 bytes."""
        if self.size > 1:
            buffer = torch.zeros(4096, dtype=torch.uint8, device=device)
            if self.writes:
                content = text.encode()
                buffer[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
            dist.broadcast(buffer, 0)
            text = bytes(buffer.tolist()).rstrip(b"\0").decode()
        return text


ALONE = Group()  # a single process


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Connect the processes that torchrun started, by NCCL on GPUs and by Gloo on CPUs; ALONE without torchrun.

    Raises:
        Fault: Another process of the group has ended.
    """
    size = torchrun.processes()
    if size == 1:
        yield ALONE
        return
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            rank = int(os.environ["RANK"])
            dist.init_process_group(backend, timeout=PATIENCE, store=_fresh_store(rank), rank=rank, world_size=size)
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
        # Python's exit may abort the process while a thread of the group still runs: "terminate called ...".
        atexit.register(dist.destroy_process_group)
    try:
        yield Group(dist.get_rank(), size)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            mend = (
                "torchrun starts all of them again" if torchrun.starts_again() else "resume the run with `resume=True`"
            )
            raise Fault(f"Another process of this run has ended, so this one stops: {mend}.") from error
        raise


def _fresh_store(rank: int) -> Store:
    """The store by which the processes find each other, run by the first one.

    After torchrun has restarted processes, its own store still holds the addresses of the previous ones, which nobody
    answers at. So it serves only to pass on the port of a store that is new with each start.
    """
    address = os.environ["MASTER_ADDR"]
    agent = TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    if rank == 0:
        store = TCPStore(address, 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        agent.set(STORE_PORT, str(store.port))
        return store
    while True:
        port = int(agent.get(STORE_PORT))  # waits until there is one
        try:
            socket.create_connection((address, port), timeout=10).close()
        except OSError:
            time.sleep(0.1)
        else:
            return TCPStore(address, port, is_master=False, timeout=PATIENCE)
