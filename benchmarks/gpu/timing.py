"""The time that a device, the host, or both need for some work, for the items of `make gpu`."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu.items import Bench, Result

CALLS, TINY_CALLS = 30, 1  # of which the median is taken
SETS = 3  # CUDA graphs that are replayed in turns, as many as there are sets of tensors
SLEEP_CYCLES = 4_000_000  # about 2 ms, in which the host gets far enough ahead of the GPU


@functools.cache
def peak_flops(device: torch.device, tiny: bool) -> float:
    """Measure the FLOP/s of a large bfloat16 matmul; in a rehearsal, of a small one."""
    return measure.peak_flops(device, torch.bfloat16, 64 if tiny else None)


class Clock:
    """Times stretches of a device's work, by CUDA events or, on a CPU, by the clock.

    Before a measured call, `busy` gives the GPU so much to do that the host, which takes longer for a launch than the
    GPU does, does not hold it up.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def now(self) -> Any:
        """The moment at which the device has finished all its work so far."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Microseconds between two moments. Waits for the device."""
        if not self.on_gpu:
            return float(1e6 * (last - first))
        last.synchronize()
        return float(1e3 * first.elapsed_time(last))

    def busy(self) -> None:
        """Keep the GPU busy for about 2 ms."""
        if self.on_gpu:
            torch.cuda._sleep(SLEEP_CYCLES)


def warm_up(bench: Bench, work: Callable[[int], Any]) -> None:
    """Call once on a GPU, to compile."""
    if bench.device.type == "cuda":
        work(0)


def wall(bench: Bench, work: Callable[[int], Any]) -> float:
    """Measure the median microseconds of a call, until the GPU is done."""
    warm_up(bench, work)
    calls = TINY_CALLS if bench.tiny else CALLS
    return 1e6 * statistics.median(measure.seconds(lambda k=k: work(k), bench.device) for k in range(calls))  # type: ignore[misc]


def host(bench: Bench, work: Callable[[int], Any]) -> float:
    """Measure the median microseconds after which a call returns, even if the GPU still works."""
    durations = []
    for k in range(TINY_CALLS if bench.tiny else CALLS):
        measure.synchronize(bench.device)
        began = time.perf_counter()
        work(k)
        durations.append(time.perf_counter() - began)
    return 1e6 * statistics.median(durations)


def replay(bench: Bench, work: Callable[[int], Any]) -> tuple[float, float] | None:
    """Measure the median microseconds of a replayed CUDA graph: until the GPU is done, and on the GPU alone.

    None on a CPU, which has none.
    """
    if bench.device.type == "cpu":
        return None
    work(0)
    torch.cuda.synchronize()
    graphs = [torch.cuda.CUDAGraph() for _ in range(SETS)]
    for k, graph in enumerate(graphs):
        with torch.cuda.graph(graph):
            work(k)
    clock, on_gpu = Clock(bench.device), []
    for k in range(CALLS):
        clock.busy()
        before = clock.now()
        graphs[k % len(graphs)].replay()
        on_gpu.append(clock.between(before, clock.now()))
    return wall(bench, lambda k: graphs[k % len(graphs)].replay()), statistics.median(on_gpu)


def on_device(bench: Bench, work: Callable[[], Any]) -> float:
    """Measure the median microseconds that the device needs for some work."""
    clock, found = Clock(bench.device), []
    work()
    for _ in range(2 if bench.tiny else 10):
        clock.busy()
        before = clock.now()
        work()
        found.append(clock.between(before, clock.now()))
    return statistics.median(found)


def profiled(bench: Bench, work: Callable[[], Any], repeats: int, most: int = 25) -> list[Result]:
    """Find what takes the most time in some work: kernels on a GPU, operators on a CPU.

    Args:
        bench: What the item is given.
        work: The work.
        repeats: How often it does the same: calls and microseconds are divided by this.
        most: How many of the kernels to keep; the last row holds the rest.
    """
    kind = "CUDA" if bench.device.type == "cuda" else "CPU"
    measure.synchronize(bench.device)
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind)]) as profiler:
        work()
        measure.synchronize(bench.device)
    attribute = "self_device_time_total" if kind == "CUDA" else "self_cpu_time_total"
    averages = [event for event in profiler.key_averages() if event.device_type.name == kind]
    events = [(e.key, e.count, getattr(e, attribute)) for e in averages if not e.is_user_annotation]
    events.sort(key=lambda event: -event[2])
    if not events:
        raise RuntimeError("the profiler saw nothing")
    total = sum(us for *_, us in events)
    rows = [(name, count, us) for name, count, us in events[:most]]
    rows.append(("all others", sum(count for _, count, _ in events[most:]), sum(us for *_, us in events[most:])))
    return [
        {"kernel": name, "calls": count / repeats, "us": us / repeats, "share": us / total} for name, count, us in rows
    ]
