"""What the device is good at: fast products in bfloat16, and memory that need not be taken anew."""

import contextlib
import ctypes
import time
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_NEVER = 2**31 - 1


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
