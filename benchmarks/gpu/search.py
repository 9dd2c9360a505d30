"""Stage 2 of `make gpu`: the time of the search's kernels, compared with predictions and with other libraries."""

import contextlib
import csv
import io
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import measure
from benchmarks.gpu.correctness import tool
from benchmarks.gpu.items import Bench, Item, Options, Result, row
from benchmarks.gpu.timing import CALLS, TINY_CALLS, Clock, host, peak_flops, profiled, replay, wall, warm_up
from benchmarks.nearest import comparison as nearest
from benchmarks.nearest import methods
from imletriton import search
from imletriton.kernels import launch
from imletriton.kernels.launch import Tile
from imletriton.search import gpu

Shape = tuple[int, int, int]  # queries, samples, dimensions
SHAPES = nearest.SHAPES
TINY_SHAPES = [(5, 60, 20)]
LAUNCHERS = ("start", "round_vectors", "scan", "decide", "refine")
# Predicted for an H100, in microseconds, from the machine code and by counting; none of it was measured. The search's
# wall time was predicted when it had more launches; the times of others partly follow what they publish.
PREDICTED: dict[Shape, dict[str, Any]] = {
    (389, 10_000, 800): {"round": 24, "scan": 18, "decide twice": 10, "refine, idle": 7, "wall": (450, 600)}
    | {"bfloat16 product": 16, "flash-kmeans": (1500, 2500)},
    (100, 10_000, 1024): {"round": 26, "scan": 8, "decide twice": 10, "refine, idle": 4, "wall": (450, 550)}
    | {"bfloat16 product": 7, "flash-kmeans": 1700},
    (1000, 50_000, 512): {"round": 58, "scan": 120, "decide twice": 22, "refine, idle": 55, "wall": 520}
    | {"bfloat16 product": 90, "flash-kmeans": 2000},
    (4096, 65_536, 128): {"round": 20, "scan": 250, "decide twice": 45, "refine, idle": 150, "wall": (550, 700)}
    | {"bfloat16 product": 200, "flash-kmeans": (800, 1300)},
}
STEPS = {"start": "start", "round_vectors": "round", "scan": "scan", "decide": "decide twice", "refine": "refine, idle"}
SCAN_TILES = [
    Tile(128, 256, 64, 8, 3),
    Tile(128, 256, 64, 8, 4),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 4, 3),
    Tile(64, 128, 64, 4, 4),
    Tile(64, 256, 64, 4, 3),
]
COUNTERS = r"(sm|dram)__throughput.avg.pct|warps_active.avg.pct|registers_per_thread$|gpu__time_duration.sum"
COUNTERS += r"|shared_mem_per_block_(dynamic|static)|issue_stalled_\w+_per_issue_active.ratio|__inst_executed.sum$"


def waves(options: Options) -> list[list[list[Item]]]:
    """The search's kernels in one process, other libraries in another, and ncu."""
    shapes = TINY_SHAPES if options.tiny else SHAPES
    ends = [*dict.fromkeys([shapes[0], shapes[-1]])]
    ours = [Item("peak", peak, 30)]
    ours += [Item(f"search {named(shape)}", partial_of(of_shape, shape), 60) for shape in shapes]
    ours += [Item(f"kernels {named(shape)}", partial_of(profile, shape), 40) for shape in ends]
    ours += [Item(f"scan tile {name_of(tile)}", partial_of(scan_tile, tile), 40) for tile in SCAN_TILES]
    ours += [Item(f"collapsed data {named(shape)}", partial_of(collapsed, shape), 60) for shape in ends]
    peers = [Item(f"peers {named(shape)}", partial_of(beside, shape), 100) for shape in ends]
    return [[ours], [peers], [[Item("ncu", counters, 90, needs_cuda=True)]]]


def partial_of(work: Callable[[Bench, Any], Result], argument: Any) -> Callable[[Bench], Result]:
    """Make the work of an item from a function of the bench and an argument. On a CPU, kernels are interpreted."""

    def run(bench: Bench) -> Result:
        with measure.searching_by_kernels():
            return work(bench, argument)

    return run


def named(shape: Shape) -> str:
    """A shape in words."""
    return " x ".join(f"{size:,}" for size in shape)


def name_of(tile: Tile) -> str:
    """A tile in words."""
    return f"{tile.block_m} x {tile.block_n} x {tile.block_k}, {tile.num_warps} warps, {tile.num_stages} stages"


# -- time --------------------------------------------------------------------------------------------------------------


def peak(bench: Bench) -> Result:
    """Measure a large bfloat16 matmul, the peak that all shares refer to."""
    return {"rows": [row("bfloat16 matmul, 8192", peak_flops(bench.device, bench.tiny) / 1e12, "TFLOP/s", 790)]}


@contextlib.contextmanager
def launches(clock: Clock) -> Iterator[list[tuple[str, Any, Any, Any]]]:
    """Record each launcher that a search calls: its name, the moments before and after, and its result."""
    noted: list[tuple[str, Any, Any, Any]] = []

    def watched(name: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = clock.now()
            result = launcher(*arguments)
            noted.append((name, before, clock.now(), result))
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name in LAUNCHERS:
            stack.enter_context(patch.object(gpu, name, watched(name, getattr(gpu, name))))
        yield noted


def step_times(bench: Bench, work: Callable[[int], Any], calls: int | None = None) -> dict[str, float]:
    """Measure the median microseconds of each launcher in a call, over all its launches."""
    clock, found = Clock(bench.device), dict[str, list[float]]()
    warm_up(bench, work)
    for k in range(calls or (TINY_CALLS if bench.tiny else CALLS)):
        clock.busy()
        with launches(clock) as noted:
            work(k)
        sums = dict.fromkeys(LAUNCHERS, 0.0)
        for name, before, after, _ in noted:
            sums[name] += clock.between(before, after)
        for name, total in sums.items():
            found.setdefault(name, []).append(total)
    return {name: statistics.median(values) for name, values in found.items()}


def data(bench: Bench, shape: Shape, kind: str = "normal") -> list[tuple[Tensor, Tensor]]:
    """Make several sets of queries and samples, used in turns so that none is in a cache by chance."""
    torch.manual_seed(0)
    n, m, d = shape
    make = nearest.DATA[kind]
    return [(make(n, d, bench.device), make(m, d, bench.device)) for _ in range(1 if bench.tiny else nearest.SETS)]


def searches(sets: list[tuple[Any, Any]]) -> Callable[[int], Any]:
    """`imletriton.nearest` on the sets in turns."""
    return lambda k: search.nearest(*sets[k % len(sets)])


def all_found(sets: list[tuple[Tensor, Tensor]]) -> None:
    """Check that the search finds the nearest samples of the first set.

    Raises:
        RuntimeError: It does not.
    """
    x, y = sets[0]
    share, error = nearest.judge(search.nearest(x, y), x, y, nearest.least_sq_distances(x, y))
    if share < 1 or (error or 0.0) > 1e-5:
        raise RuntimeError(f"{share:.2%} of the nearest samples found, distances off by {error:.0e}")


# -- items -------------------------------------------------------------------------------------------------------------


def of_shape(bench: Bench, shape: Shape) -> Result:
    """Each kernel, the whole call, the call as a CUDA graph, and a plain bfloat16 product of the same shape."""
    sets, name = data(bench, shape), named(shape)
    all_found(sets)
    predicted = PREDICTED.get(shape, {})
    rows = [
        row(f"{name}: {STEPS[step]}", us, "us", predicted.get(STEPS[step]))
        for step, us in step_times(bench, searches(sets)).items()
    ]
    bench.note({"rows": rows})
    rounded = [(x.bfloat16(), y.bfloat16()) for x, y in sets]
    rows.append(row(f"{name}: nearest, wall", wall(bench, searches(sets)), "us", predicted.get("wall")))
    rows.append(row(f"{name}: nearest, host", host(bench, searches(sets)), "us"))
    prepared = [(first := search.Prepared(x), search.Prepared(y, first)) for x, y in sets]
    rows.append(row(f"{name}: nearest of prepared vectors, wall", wall(bench, searches(prepared)), "us"))
    product = wall(bench, lambda k: rounded[k % len(rounded)][0] @ rounded[k % len(rounded)][1].T)
    rows.append(row(f"{name}: bfloat16 product, wall", product, "us", predicted.get("bfloat16 product")))
    bench.note({"rows": rows})
    if replayed := replay(bench, searches(sets)):
        rows.append(row(f"{name}: as a CUDA graph, wall", replayed[0], "us"))
        rows.append(row(f"{name}: as a CUDA graph, on the GPU", replayed[1], "us"))
    whole = (f"{name}: nearest, wall", f"{name}: as a CUDA graph, wall")
    fastest = min(r["measured"] for r in rows if r["what"] in whole)
    flops = 2 * shape[0] * shape[1] * shape[2] / (1e-6 * fastest)
    rows.append(row(f"{name}: share of peak", 100 * flops / peak_flops(bench.device, bench.tiny), "%"))
    memory = measure.extra_memory(lambda: search.nearest(*sets[0]), bench.device)
    rows.append(row(f"{name}: memory beyond the input", memory / 2**20, "MiB"))
    return {"rows": rows}


def profile(bench: Bench, shape: Shape) -> Result:
    """Measure the same kernels by the profiler, which distinguishes what one launcher launches."""
    sets, calls = data(bench, shape), TINY_CALLS if bench.tiny else CALLS
    work = searches(sets)
    warm_up(bench, work)
    table = profiled(bench, lambda: [work(k) for k in range(calls)], calls)
    launched = sum(kernel["calls"] for kernel in table)
    return {"kernels": table, "rows": [row(f"{named(shape)}: launches of a search", launched, "")]}


@contextlib.contextmanager
def scanning_by(tile: Tile, device: torch.device) -> Iterator[None]:
    """Let every search use this tile."""
    generation = launch.generation(device)
    scans, refines = launch.SCAN[generation], launch.REFINE[generation]
    spare = {**launch.REFINE["ampere"], **refines}  # the table for small chips has no tile of 128 rows
    with patch.dict(scans, dict.fromkeys(scans, tile)), patch.dict(refines, spare):
        yield


def scan_tile(bench: Bench, tile: Tile) -> Result:
    """Measure the scan with one tile for all shapes, and the whole search, as the tile changes the decision too."""
    found = {}
    with scanning_by(tile, bench.device):
        for shape in TINY_SHAPES if bench.tiny else SHAPES:
            sets = data(bench, shape)
            all_found(sets)
            found[named(shape)] = step_times(bench, searches(sets))
            if replayed := replay(bench, searches(sets)):
                found[named(shape)]["all, on the GPU"] = replayed[1]
            bench.note({"tiles": {name_of(tile): found}})
    return {"tiles": {name_of(tile): found}}


def collapsed(bench: Bench, shape: Shape) -> Result:
    """Measure difficult data (far from the origin, or nearly equal): the times, and how many tiles are refined."""
    rows = []
    for kind in [*nearest.DATA][1:]:
        sets, name = data(bench, shape, kind), f"{named(shape)}, {kind}"
        all_found(sets)
        with launches(Clock(bench.device)) as noted:
            search.nearest(*sets[0])
        crowded = [result[3] for launcher, *_, result in noted if launcher == "scan"]
        share = sum(int(c[0]) for c in crowded) / sum(len(c) - 1 for c in crowded)
        rows.append(row(f"{name}: tiles refined", 100 * share, "%"))
        times = step_times(bench, searches(sets), TINY_CALLS if bench.tiny else 10)
        rows += [row(f"{name}: {step}", us, "us") for step, us in times.items()]
        rows.append(row(f"{name}: nearest, wall", wall(bench, searches(sets)), "us"))
        bench.note({"rows": rows})
    return {"rows": rows}


def beside(bench: Bench, shape: Shape) -> Result:
    """Make the comparison of `python -m benchmarks` with fewer repetitions."""
    chosen = methods.METHODS
    if bench.tiny:
        chosen = {name: chosen[name] for name in ("imletriton", "torch.cdist + min", "flash-kmeans")}
    seconds, fewest = (0.01, 2) if bench.tiny else (0.3, 5)
    text = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(nearest, "METHODS", chosen))
        stack.enter_context(patch.object(nearest, "peak_flops", lambda device, dtype: peak_flops(device, bench.tiny)))
        stack.enter_context(patch.object(measure, "SECONDS", seconds))
        stack.enter_context(patch.object(measure, "FEWEST", fewest))
        found = nearest.run(bench.device, [shape], Console(file=text, width=150))
    predicted = PREDICTED.get(shape, {})
    rows = [
        row(f"{named(shape)}: {r['method']}", 1e6 * r["seconds"], "us", predicted[r["method"]])
        for r in found["rows"]
        if r["seconds"] and r["data"] == "normal" and r["method"] in predicted
    ]
    return {"bench": found["rows"], "rows": rows}


def counters(bench: Bench) -> Result:
    """Read the counters of the scan and the refinement by ncu, launch by launch, at the card's usual clocks."""
    code = "from benchmarks.gpu.search import for_ncu; for_ncu()"
    command = [tool("ncu"), "--clock-control", "none", "--csv", "--page", "raw", "--target-processes", "all"]
    for section in ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats"):
        command += ["--section", section]
    command += ["--kernel-name", "regex:^(scan|refine)_kernel$", "--launch-count", "8", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    bench.note({"lines": (done.stdout + done.stderr).splitlines()[-5:]})
    if not lines:
        raise RuntimeError(f"ncu ended with {done.returncode} and no counters")
    head, units, *launched = csv.reader(lines)
    keep = [k for k, name in enumerate(head) if re.search(COUNTERS, name)]
    kernel = head.index("Kernel Name")
    return {
        "counters": [
            {"kernel": values[kernel]} | {f"{head[k]} {units[k]}".strip(): values[k] for k in keep}
            for values in launched
        ]
    }


def for_ncu() -> None:
    """Search two shapes of data that needs no refinement, and of data that needs it everywhere."""
    device = torch.device("cuda")
    for n, m, d in SHAPES[2:]:
        for kind in ("normal", "samples nearly equal"):
            torch.manual_seed(0)
            search.nearest(nearest.DATA[kind](n, d, device), nearest.DATA[kind](m, d, device))
    torch.cuda.synchronize()
