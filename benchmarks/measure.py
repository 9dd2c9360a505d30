"""Measure times and memory, describe the machine, and write results."""

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from imletriton.runs.run import write_whole
from imletriton.search import backends
from imletriton.system.device import device_name

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PACKAGES = ["torch", "triton", "numpy", "faiss-cpu", "faiss-gpu-cu12", "flash-kmeans", "pykeops"]
PACKAGES += ["scikit-learn"]
Work = Callable[[], Any]
SECONDS = 3.0  # about how long to repeat one measurement
FEWEST, MOST = 3, 30  # the least and the greatest number of repetitions


@dataclass(frozen=True)
class Time:
    """The time of several calls.

    Attributes:
        median: The median, in seconds.
        spread: The interquartile range divided by the median.
        calls: The number of calls.
    """

    median: float
    spread: float
    calls: int


def add_arguments(parser: argparse.ArgumentParser, out_help: str = "the folder for the JSON file") -> None:
    """Add the options --device and --out, which several benchmarks have, to a parser."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="the device to measure on; by default the GPU, if any")
    parser.add_argument("--out", type=Path, default=RESULTS, help=out_help)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished everything that it was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    """Measure the duration of one call in seconds, until the device has finished its work."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def times(works: dict[str, Callable[[int], Any]], device: torch.device, fewest: int | None = None) -> dict[str, Time]:
    """Measure several functions in turns, so that a slow moment of the machine affects all of them alike.

    Args:
        works: The functions by name. Each is called with k = 0, 1, ... and should have been called once before, to
            compile and to warm up.
        device: The device that the functions use.
        fewest: The least number of calls of each function, instead of FEWEST.

    Returns:
        The time of each function.
    """
    durations: dict[str, list[float]] = {name: [seconds(lambda w=work: w(0), device)] for name, work in works.items()}  # type: ignore[misc]
    calls = {name: min(MOST, max(fewest or FEWEST, int(SECONDS / first[0]))) for name, first in durations.items()}
    for k in range(1, 1 + max(calls.values(), default=0)):
        for name, work in works.items():
            if k <= calls[name]:
                durations[name].append(seconds(lambda w=work, k=k: w(k), device))  # type: ignore[misc]
    result = {}
    for name, (_, *measured) in durations.items():
        low, median, high = statistics.quantiles(measured, n=4)
        result[name] = Time(median, (high - low) / median, len(measured))
    return result


def gain(work: Work, instead: Work, device: torch.device, calls: int) -> float:
    """Measure how many times as long `instead` takes as `work`.

    Args:
        work: The one function.
        instead: The other function.
        device: The device that the functions use.
        calls: The number of calls of each. The functions are called in turns.

    Returns:
        The median of the ratios of their times.
    """
    pairs = ((seconds(work, device), seconds(instead, device)) for _ in range(calls))
    return statistics.median(instead_time / work_time for work_time, instead_time in pairs)


def extra_memory(work: Work, device: torch.device) -> int:
    """Measure the memory that one call takes at its peak, beyond what is in use before the call.

    A thread samples the memory in use while the call runs. On a GPU, PyTorch's own count is considered too.

    Args:
        work: The function.
        device: The device that it uses.

    Returns:
        The additional memory in bytes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = used_memory(device), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], used_memory(device))

    sampler = threading.Thread(target=sample)
    sampler.start()
    result = work()  # the result stays in memory until the peak has been read
    synchronize(device)
    done.set()
    sampler.join()
    extra = max(peak[0], used_memory(device)) - before
    if device.type == "cuda":
        extra = max(extra, torch.cuda.max_memory_allocated(device) - allocated)
    del result
    return max(0, extra)


def used_memory(device: torch.device) -> int:
    """Return the bytes in use: on a GPU by all processes, on the CPU by this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def searching_by_kernels() -> Iterator[None]:
    """Let searches use the Triton kernels, which Triton interprets on a CPU."""
    with patch.object(backends, "on_gpu", lambda vectors: True):
        yield


def peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Measure the FLOP/s of the fastest of 30 large square matmuls: about the best that this device can do."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return float(2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(30)))


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine: the name of the device, the versions of the packages, the date and the commit."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
    }


def write(result: dict[str, Any], suffix: str, folder: Path) -> Path:
    """Write a result to a JSON file, which appears whole or not at all.

    Args:
        result: The result, with the entries that `machine` returns.
        suffix: The second part of the file name; the first part is the name of the device.
        folder: The folder for the file, which is created where it does not exist.

    Returns:
        The path of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    path = folder / f"{device}-{suffix}.json"
    write_whole(path, lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))
    return path


def commit() -> str:
    """Return the commit of the checkout that this file belongs to, marked where files have changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
