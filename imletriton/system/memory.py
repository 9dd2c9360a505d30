"""How much memory this process can still get. Needs no PyTorch, so that a recipe too large is refused at once."""

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from imletriton.system import torchrun

GIB = 2**30
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The files of the limit and of what is used, and the key of what is used but reclaimable: version 2, and version 1.
CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory() -> int:
    """Return how many bytes of main memory this process can get: the least that machine, cgroups and ulimit leave.

    The processes that torchrun started on this machine share that equally.
    """
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_left_by_cgroups()]
    with contextlib.suppress(OSError, KeyError, ValueError):  # Linux has both files
        free.append(1024 * int(_table(Path("/proc/meminfo"))["MemAvailable:"]))
        limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm").read_text().split()[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - int(used) * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) // torchrun.processes_here()


def size(count: float) -> str:
    """Return a number of bytes for messages."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def has_cuda_driver() -> bool:
    """Return whether a driver for NVIDIA GPUs is installed."""
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("libcuda.so.1"))
    return False


def _left_by_cgroups() -> Iterator[int]:
    """Yield the bytes that each control group around this process leaves."""
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in CGROUP_FILES:
                continue
            limit, used, reclaimable = CGROUP_FILES[controllers]
            top = CGROUPS / controllers
            group = top / path.lstrip("/")
            for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
                with contextlib.suppress(
                    OSError, KeyError, ValueError
                ):  # without a limit, there is no file or it says "max"
                    taken = int((folder / used).read_text()) - int(_table(folder / "memory.stat")[reclaimable])
                    yield int((folder / limit).read_text()) - taken


def _table(file: Path) -> dict[str, str]:
    """Read a file with a name and a value on each line."""
    return {name: value for name, value, *_ in (line.split() for line in file.read_text().splitlines())}
