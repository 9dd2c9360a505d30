"""Choose the device, decide whether bfloat16 is fast on it, and report its memory, its name and package versions."""

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
from imletriton.system.torchrun import local_rank

PACKAGES = ("imletriton", "torch", "triton")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_NEVER = 2**31 - 1  # a threshold in bytes that is never reached


def choose_device(device: str | torch.device | None) -> torch.device:
    """Choose the device to compute on.

    Args:
        device: "cuda", "cuda:1", "cpu" or a torch.device. None chooses cuda where PyTorch finds a CUDA GPU, else cpu.

    Returns:
        The device. Each of several processes that torchrun started gets a GPU of its own.

    Raises:
        InputError: The device is unknown or does not exist on this machine.
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
    """Return whether the device multiplies bfloat16 matrices faster than float32 matrices.

    This one rule decides for training with `precision = "auto"` in the recipe and for the nearest-neighbour search. On
    a GPU the driver answers, on an x86 processor its feature flags do; on other processors a short measurement decides.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _processor_multiplies_bfloat16()


@cache
def _processor_multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices faster than float32 matrices; asked once a process."""
    if not torch.backends.mkldnn.is_available():
        return False  # PyTorch's own loops are not faster in bfloat16
    flags: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in flags:  # this is an x86 processor
        return bool(flags["avx512_bf16"] or flags.get("amx_bf16"))
    return _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the least time, in seconds, of several matmuls of size 512 x 512.

    Without bfloat16 units, a processor takes several times longer in bfloat16 than in float32.
    """
    a = torch.ones(512, 512, dtype=dtype)
    durations = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        durations.append(time.perf_counter() - start)
    return min(durations)


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether networks multiply in bfloat16.

    Args:
        precision: A recipe's `train.precision`: "float32", "bfloat16", or "auto" for what the device does faster.
        device: The device that trains.
    """
    return multiplies_bfloat16(device) if precision == "auto" else precision == "bfloat16"


def set_up(device: torch.device) -> None:
    """Make the settings of this process by which training on the device is faster.

    On a GPU, cuDNN times its algorithms for each new convolution, and then takes the fastest one.
    """
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, so that the next tensor of the same size can reuse it.

    By default, glibc returns large blocks to the operating system, which must clear each page before it hands it out
    again. On a CPU this takes a fifth of the time of drawing a pool. With other C libraries this function does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[None]:
    """Return a context in which matmuls and convolutions run in bfloat16; sums and norms stay in float32.

    Args:
        device: The device that computes.
        bfloat16: False returns a context that changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast, for what has to be computed in float32.

    Args:
        x: A tensor on the device whose autocast is to be disabled.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what a function makes a GPU do as one CUDA graph, which the host launches at once.

    Args:
        work: Reads and writes only tensors that stay where they are, and never waits for the device. It is run three
            times before it is recorded, so that everything in it is compiled and chosen by then.
        device: The GPU.

    Returns:
        A function that does the same to the same tensors.
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
    """Return the bytes of a GPU's memory that are free, also those that PyTorch keeps for this process."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def memory_mb(device: torch.device) -> int:
    """Return the peak memory so far in MiB: that of PyTorch on the GPU, or that of the process for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def environment(device: torch.device) -> dict[str, str]:
    """Return the names and versions that the results of a run may depend on.

    Args:
        device: The device that the run uses.

    Returns:
        The name of the device, the operating system, and the versions of Python and of each installed package of
        PACKAGES.
    """
    return {"device": device_name(device), "system": platform.platform(), **_versions()}


@cache
def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages. Cached: every checkpoint has them, and they are read slowly."""
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
