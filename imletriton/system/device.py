"""Choose the device, decide on bfloat16, record CUDA graphs, and report memory, names and versions."""

import contextlib
import ctypes
import platform
import resource
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from imletriton.errors import InputError
from imletriton.system.checks import check_device
from imletriton.system.torchrun import local_rank

PACKAGES = ("imletriton", "torch", "triton")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_NEVER = 2**31 - 1  # bytes: a threshold that is never reached


def choose_device(device: str | torch.device | None) -> torch.device:
    """Choose the device to compute on.

    Args:
        device: "cuda", "cuda:1", "cpu" or a torch.device. None chooses cuda if PyTorch finds a CUDA GPU, else cpu.

    Returns:
        The device. Each of several processes that torchrun started gets its own GPU.

    Raises:
        InputError: The device is unknown or does not exist on this machine.
    """
    check_device(device)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
    """Return whether the device multiplies bfloat16 matrices faster than float32 matrices.

    This rule decides for training with `precision = "auto"`, and for the nearest-neighbour search. It asks a GPU's
    driver or an x86 processor's feature flags; on other processors it measures.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _processor_multiplies_bfloat16()


@cache
def _processor_multiplies_bfloat16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False  # PyTorch's own loops are not faster in bfloat16
    flags: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in flags:  # this is an x86 processor
        return bool(flags["avx512_bf16"] or flags.get("amx_bf16"))
    return _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the shortest time of several 512 x 512 matmuls; without bfloat16 units, that is far longer in bfloat16."""
    a = torch.ones(512, 512, dtype=dtype)
    durations = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        durations.append(time.perf_counter() - start)
    return min(durations)


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether networks multiply in bfloat16, for a recipe's `train.precision` and the device that trains."""
    return multiplies_bfloat16(device) if precision == "auto" else precision == "bfloat16"


def set_up(device: torch.device) -> None:
    """Make this process train faster: on a GPU, cuDNN then times its algorithms for each new convolution."""
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next tensor of the same size.

    By default, glibc returns large blocks to the operating system, which clears each page before it hands it out again.
    On a CPU this takes a fifth of the time of drawing a pool. With other C libraries, this function does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[None]:
    """Return a context in which, with bfloat16, matmuls and convolutions use it; sums and norms stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of x, for what has to be computed in float32."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what a function makes a GPU do as a CUDA graph, and return a function that launches that graph.

    Args:
        work: Reads and writes only tensors that stay in place, and never waits for the device. It runs three times
            before it is recorded, so that everything in it is compiled and chosen by then.
        device: The GPU.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # not yet recording
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


def free_gpu_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU's memory, including those that PyTorch caches for this process."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def memory_mb(device: torch.device) -> int:
    """Return the peak memory so far in MiB: PyTorch's on a GPU, or the process's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def environment(device: torch.device) -> dict[str, str]:
    """Return what the results on a device may depend on: its name, the system, and versions of Python and PACKAGES."""
    return {"device": device_name(device), "system": platform.platform(), **_versions()}


@cache
def _versions() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES. Cached: they are slow to read, and every checkpoint has them."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # Triton exists on Linux only
            versions[name] = version(name)
    return versions


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor, as its manufacturer gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
