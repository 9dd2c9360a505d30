"""The device: which one to use, whether it multiplies bfloat16 fast, its memory, its name and the versions on it."""

import contextlib
import ctypes
import platform
import resource
import time
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from imletriton.errors import InputError
from imletriton.system.distributed import local_rank

PACKAGES = ("imletriton", "torch", "triton")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_NEVER = 2**31 - 1


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; None takes cuda where PyTorch finds a CUDA GPU, else cpu.

    Of several processes that torchrun started, each gets a GPU of its own. Raises InputError where the device is not
    known or not there.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cuda", "cpu"):
        raise InputError(f"`device` {str(device)!r} is not known: use cuda or cpu.")
    if chosen.type == "cpu":
        return chosen
    if not torch.cuda.is_available():
        raise InputError(
            "`device` is cuda, but this machine has no CUDA GPU that PyTorch can use: leave it out or use cpu."
        )
    if (rank := local_rank()) is not None:
        chosen = torch.device("cuda", rank)
    if (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"`device` is {chosen}, but this machine has {torch.cuda.device_count()} CUDA GPUs, counted from 0."
        )
    return chosen


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones.

    The one rule for all that may choose between them: training where a recipe says `precision = "auto"`, and the
    nearest-neighbour search. Where neither the driver nor the processor's flags tell, a short measurement does.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _processor_multiplies_bfloat16()


@cache
def _processor_multiplies_bfloat16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False  # PyTorch's own loops gain nothing
    flags: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in flags:  # an x86 processor
        return bool(flags["avx512_bf16"] or flags.get("amx_bf16"))
    return _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of several products of 512 x 512 matrices. Without bfloat16 units they take several times longer."""
    a = torch.ones(512, 512, dtype=dtype)
    taken = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - began)
    return min(taken)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, so that the next tensor of that size finds it there.

    glibc gives large blocks back to the system, which must clear each page anew: on a CPU, that is a fifth of the time
    that a pool takes. Nothing happens where the C library is another one.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Leave autocast: for products so small that casting their weights costs more than it saves."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def memory_mb(device: torch.device) -> int:
    """Peak memory so far in MiB: the GPU's where it trains there, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def environment(device: torch.device) -> dict[str, str]:
    """The device and the versions that the figures of a run may depend on."""
    found = {"device": device_name(device), "system": platform.platform(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Triton is on Linux only
            continue
    return found


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[None]:
    """A context in which matmuls and convolutions run in bfloat16, if bfloat16; sums and norms stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
