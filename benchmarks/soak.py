"""python -m benchmarks.soak: does anything grow with the steps of a run?

An ordinary `fit` as the papers run it, but small: LPIPS by a random SqueezeNet, products in bfloat16, thresholds and an
automatic rejection radius; rounds, logging, grids and checkpoints come more often than usual. On one core: others' work
then slows it least. Exits with 1 where something grew.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import measure
from imletriton.commands.fit import fit
from imletriton.commands.reporter import Reporter
from imletriton.plotting.charts import BLUE
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.trainer import Trainer

ROOT = Path(__file__).parents[1]
STEPS, MARKS = 20_000, 50
SETTLED = 2000  # the step from which nothing may grow any more; of shorter runs, a tenth
TOLERANCE = 0.02  # of memory, as a share
SOAK = {
    "name": "soak",
    "data.resolution": 32,
    "generator.width": 16,
    "generator.blocks": "4x1,8m4,16m8,32m16",
    "generator.bottleneck": 0.25,
    "distance.kind": "lpips",
    "distance.backbone": "squeeze",
    "distance.weights": "random",
    "selection.strategy": "adaptive-rejection",
    "selection.epsilon": "auto",
    "selection.pool": "2n",
    "train.batch_size": 4,
    "train.precision": "bfloat16",
    "log.every": 20,
    "log.samples_every": 400,
    "log.checkpoint_every": 400,
}
# What is watched: where it stands in the JSON file, and what the picture calls it.
PANELS = {
    "memory_mb": "resident memory (without libraries), MiB",
    "allocated_mb": "of it handed out by malloc, MiB",
    "gpu_mb": "GPU memory held by PyTorch, MiB",
    "tensors": "live tensors",
    "open_files": "open file handles",
    "threads": "threads",
    "steps_per_s": "steps a second",
    "log_kb": "log.jsonl, KiB",
    "tensorboard_kb": "TensorBoard's files, KiB",
    "files": "files in the run's folder",
}


class Watch(Reporter):
    """Takes down what a run holds, every so many steps, as `rows`."""

    def __init__(self, every: int) -> None:
        self.every, self.rows = every, list[dict[str, float]]()

    def started(self, run: Run, trainer: Trainer, total: int) -> None:
        self.run, self.device, self.since = run, trainer.device, time.perf_counter()

    def step(self, step: int) -> None:
        if step % self.every == 0:
            rate = self.every / (time.perf_counter() - self.since)
            self.rows.append({"step": step, "steps_per_s": round(rate, 2)} | held(self.run, self.device))
            self.since = time.perf_counter()


def held(run: Run, device: torch.device) -> dict[str, float]:
    """What this process and a run's folder hold now."""
    found = {"memory_mb": anonymous_memory() / 2**20}
    if (allocated := allocated_memory()) is not None:
        found["allocated_mb"] = allocated / 2**20
    if device.type == "cuda":
        found["gpu_mb"] = torch.cuda.memory_reserved(device) / 2**20
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {name: round(value, 3) for name, value in found.items()} | {
        "tensors": sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()),
        "open_files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "log_kb": round(run.log_file.stat().st_size / 1024, 1),
        "tensorboard_kb": round(sum(path.stat().st_size for path in files if ".tfevents." in path.name) / 1024, 1),
        "files": len(files),
    }


def anonymous_memory() -> int:
    """Bytes of resident memory that this process wrote itself.

    Without the libraries' pages, which the system reads from their files and takes away again as it likes.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated_memory() -> int | None:
    """Bytes that malloc has handed out and not got back; None where this C library does not tell.

    Where these stay the same, resident memory that grows is fragmentation and no leak.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = MallocInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def run(steps: int, device: torch.device) -> list[dict[str, float]]:
    """Train for so many steps; what was held at MARKS of them."""
    watch = Watch(max(1, steps // MARKS))
    recipe = Recipe.load(ROOT / "recipes/faces.toml", SOAK | {"train.iterations": steps})
    with tempfile.TemporaryDirectory() as folder:
        fit(recipe, Path(folder) / "soak", device, reporter=watch)
    return watch.rows


def verdict(rows: list[dict[str, float]]) -> tuple[bool, str]:
    """Whether nothing grew since memory had time to settle, and a line that tells the figures."""
    last = rows[-1]
    settled = next(row for row in rows if row["step"] >= min(SETTLED, last["step"] / 10))
    # Medians, since memory falls for moments: protobuf, under TensorBoard, trims the heap at each 2,000th scalar.
    first = [row for row in rows if settled["step"] <= row["step"] <= 2 * settled["step"]]
    windows = first, rows[-len(first) :]
    memory = {"memory_mb": "resident memory (without libraries)", "gpu_mb": "GPU memory"}
    changes, told = {}, []
    for name in (name for name in memory if name in last):
        early, late = (statistics.median(row[name] for row in window) for window in windows)
        changes[name] = late / early - 1
        steps = [f"{window[0]['step']:,} to {window[-1]['step']:,}" for window in windows]
        told.append(
            f"{memory[name]} {early:.1f} MiB (median of steps {steps[0]}), then {late:.1f} MiB (of {steps[1]}): "
            f"{changes[name]:+.2%}"
        )
    counted = ("open_files", "threads")
    told += [f"{PANELS[name]} {settled[name]} and {last[name]}" for name in counted]
    steady = all(abs(change) <= TOLERANCE for change in changes.values())
    steady = steady and all(last[name] <= settled[name] for name in counted)
    return steady, f"{'Nothing grows' if steady else 'NOT STEADY'}: {'; '.join(told)}."


def draw(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Write the picture: a panel for each thing watched, over the steps."""
    names = [name for name in PANELS if name in rows[0]]
    figure = Figure(figsize=(14, 9), dpi=100, layout="constrained")
    figure.suptitle(title)
    steps = [row["step"] for row in rows]
    settled = next(row for row in rows if row["step"] >= min(SETTLED, steps[-1] / 10))
    for k, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), 3, k + 1, xlabel="step", ylabel=PANELS[name])
        axes.plot(steps, [row[name] for row in rows], color=BLUE)
        if name in ("memory_mb", "gpu_mb"):
            early = statistics.median(r[name] for r in rows if settled["step"] <= r["step"] <= 2 * settled["step"])
            low, high = (early * (1 + side * TOLERANCE) for side in (-1, 1))
            axes.axhspan(low, high, color="0.9", label=f"within {TOLERANCE:.0%} of its value from {settled['step']:,}")
            axes.legend()
        elif name != "allocated_mb":
            axes.set_ylim(bottom=0)
        axes.ticklabel_format(useOffset=False)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where JSON and PNG go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    about: dict[str, Any] = measure.machine(device) | {"steps": options.steps, "recipe": SOAK}
    rows = run(options.steps, device)
    steady, told = verdict(rows)
    path = measure.write(about | {"verdict": told, "rows": rows}, "soak", options.out)
    draw(rows, f"{about['device']}, {options.steps:,} steps, {about['commit']}", path.with_suffix(".png"))
    print(f"{told}\nWritten to {path} and {path.with_suffix('.png').name}")
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
