"""Several processes that train one run together, one GPU each: `torchrun --nproc-per-node=N -m imletriton fit ...`.

All hold the same weights, data and assignments. Each makes its share of a pool's samples and of a batch; what they find
is put together exactly, so that all decide alike. The first one writes.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from imletriton.errors import Fault

PATIENCE = timedelta(hours=2)  # while the first process alone measures FID, the others wait


def local_rank() -> int | None:
    """Which of the processes that torchrun started on this machine this is; None where it started none."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


@dataclass(frozen=True)
class Group:
    """The processes of a run. Alone, nothing here costs anything."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` rows."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def complete(self, rows: Tensor) -> Tensor:
        """Fill in, in place, the rows that are the others' shares; returns them all."""
        if self.size > 1:
            mine = self.share(len(rows))
            rows[: mine.start] = 0
            rows[mine.stop :] = 0
            dist.all_reduce(rows)  # x + 0 is exact
        return rows

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def least(self, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """For each row the least value of all processes, and of equal ones the lowest index that is not -1."""
        if self.size > 1:
            none = torch.iinfo(index.dtype).max
            least = value.clone()
            dist.all_reduce(least, dist.ReduceOp.MIN)
            index = torch.where((value == least) & (index >= 0), index, none)
            dist.all_reduce(index, dist.ReduceOp.MIN)
            value, index = least, torch.where(index == none, -1, index)
        return value, index

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so. All must ask."""
        return int(self.total(torch.tensor(int(flag), device=device))) > 0 if self.size > 1 else flag

    def wait(self, device: torch.device) -> None:
        """Until all are here: where one process ends, torchrun ends the others, even one that still writes."""
        self.any(False, device)

    def text(self, text: str, device: torch.device) -> str:
        """The first process's text."""
        if self.size > 1:
            code = torch.zeros(4096, dtype=torch.uint8, device=device)
            if self.writes:
                content = text.encode()
                code[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
            dist.broadcast(code, 0)
            text = bytes(code.tolist()).rstrip(b"\0").decode()
        return text


ALONE = Group()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started, by nccl on GPUs and gloo on CPUs; alone where it started none.

    Raises Fault where another of them ends early.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    try:
        yield Group(dist.get_rank(), size)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Fault(
                "Another process of this run has ended, so this one stops: resume the run with `resume=True`."
            ) from error
        raise
