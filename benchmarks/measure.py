"""Times, memory and the machine they were taken on."""

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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from imletriton.system.device import device_name

PACKAGES = ["torch", "triton", "numpy", "faiss-cpu", "faiss-gpu-cu12", "flash-kmeans", "pykeops", "pylibraft-cu12"]
PACKAGES += ["scikit-learn"]
SECONDS = 3.0  # to spend on one measurement
FEWEST, MOST = 3, 30  # repetitions


@dataclass(frozen=True)
class Time:
    """Median seconds of several calls, and the middle half's width over the median."""

    median: float
    spread: float
    calls: int


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """One call's, with everything it put on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def times(works: dict[str, Callable[[int], Any]], device: torch.device, fewest: int | None = None) -> dict[str, Time]:
    """Of each work(k), for k = 0, 1, ...: taken in turns, so that a slow moment of the machine touches all alike.

    Call each once before, to compile and to warm up. fewest: calls of each, where SECONDS would allow fewer.
    """
    taken: dict[str, list[float]] = {name: [seconds(lambda w=work: w(0), device)] for name, work in works.items()}  # type: ignore[misc]
    wanted = {name: min(MOST, max(fewest or FEWEST, int(SECONDS / first[0]))) for name, first in taken.items()}
    for k in range(1, 1 + max(wanted.values(), default=0)):
        for name, work in works.items():
            if k <= wanted[name]:
                taken[name].append(seconds(lambda w=work, k=k: w(k), device))  # type: ignore[misc]
    result = {}
    for name, all_taken in taken.items():
        low, median, high = statistics.quantiles(all_taken[1:], n=4)
        result[name] = Time(median, (high - low) / median, len(all_taken) - 1)
    return result


def gain(work: Callable[[], Any], instead: Callable[[], Any], device: torch.device, calls: int) -> float:
    """How many times as long `instead` takes as `work`: the median of so many pairs of calls, one after the other."""
    pairs = ((seconds(work, device), seconds(instead, device)) for _ in range(calls))
    return statistics.median(other / mine for mine, other in pairs)


def extra_memory(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that one call takes at its peak beyond what is held before; sampled, with PyTorch's own count on a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        counted = torch.cuda.memory_allocated(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
    before, peak, done = used_memory(device), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], used_memory(device))

    sampler = threading.Thread(target=sample)
    sampler.start()
    kept = work()
    synchronize(device)
    done.set()
    sampler.join()
    extra = max(peak[0], used_memory(device)) - before
    if device.type == "cuda":
        extra = max(extra, torch.cuda.max_memory_allocated(device) - counted)
    del kept
    return max(0, extra)


def used_memory(device: torch.device) -> int:
    """Bytes held: of the GPU's memory by anyone, of the main memory by this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product: the best that this device was seen to do."""
    size = 8192 if device.type == "cuda" else 2048
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return float(2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(30)))


def machine(device: torch.device) -> dict[str, Any]:
    """Device, versions, date and commit."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": found,
    }


def write(about: dict[str, Any], what: str, folder: Path) -> Path:
    """Write a result, with what `machine` says, to folder/DEVICE-WHAT.json."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = folder / f"{device}-{what}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    return path


def commit() -> str:
    """Of the checkout this file lies in, marked where files were changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
