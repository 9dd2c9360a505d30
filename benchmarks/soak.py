"""Check that nothing grows with the steps of a run (python -m benchmarks.soak).

This is an ordinary but small `fit` with everything that the papers' runs do: LPIPS by a random SqueezeNet, matmuls in
bfloat16, adaptive thresholds and an automatic rejection radius. Rounds, log lines, grids and checkpoints come more
often than usual. It runs on one core, where other programs slow it down least. The exit code is 1 if something grew.
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
from torch import Tensor

from benchmarks import measure
from imletriton.commands.fit import fit
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.training.reporter import Reporter
from imletriton.training.trainer import Trainer

STEPS, MARKS = 20_000, 50
SETTLED = 2000  # from this step on nothing may grow; in shorter runs, from a tenth of the steps on
TOLERANCE = 0.02  # the relative change of memory that is allowed
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
COUNTED = {"open_files": "open file handles", "threads": "threads"}  # these may not increase
MEMORY = {"memory_mb": "resident memory (without libraries)", "gpu_mb": "GPU memory"}  # these may not grow


class Watch(Reporter):
    """Records the resources that a run uses, at regular intervals.

    Args:
        every: The number of steps between two records.

    Attributes:
        rows: The records; each holds the step, the steps per second and what `resources` returns.
    """

    def __init__(self, every: int) -> None:
        self.every, self.rows = every, list[dict[str, float]]()

    def started(self, run: Run, trainer: Trainer, total: int) -> None:
        """Note the run and the time at its start."""
        self.run, self.device, self.last_time = run, trainer.device, time.perf_counter()

    def step(self, step: int) -> None:
        """Add a record if one is due at this step."""
        if step % self.every == 0:
            rate = self.every / (time.perf_counter() - self.last_time)
            self.rows.append({"step": step, "steps_per_s": round(rate, 2)} | resources(self.run, self.device))
            self.last_time = time.perf_counter()


def resources(run: Run, device: torch.device) -> dict[str, float]:
    """Measure the resources that this process and the folder of a run use now.

    Returns:
        Memory in MiB: resident (without libraries), allocated by malloc, and reserved by PyTorch on a GPU; the numbers
        of live tensors, open files, threads and files of the run; the sizes of its log and of TensorBoard's files in
        KiB.
    """
    memory = {"memory_mb": anonymous_memory() / 2**20}
    if (allocated := allocated_memory()) is not None:
        memory["allocated_mb"] = allocated / 2**20
    if device.type == "cuda":
        memory["gpu_mb"] = torch.cuda.memory_reserved(device) / 2**20
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {name: round(value, 3) for name, value in memory.items()} | {
        "tensors": sum(issubclass(type(item), Tensor) for item in gc.get_objects()),
        "open_files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "log_kb": round(run.log_file.stat().st_size / 1024, 1),
        "tensorboard_kb": round(sum(path.stat().st_size for path in files if ".tfevents." in path.name) / 1024, 1),
        "files": len(files),
    }


def anonymous_memory() -> int:
    """Return the bytes of resident memory that this process has written itself.

    They do not include the pages of libraries, which the operating system loads from files and drops again as it likes.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated_memory() -> int | None:
    """Return the bytes that malloc has allocated and not freed yet; None if the C library cannot tell.

    If this number stays the same while resident memory grows, then the cause is fragmentation and not a leak.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = MallocInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def run(steps: int, device: torch.device) -> list[dict[str, float]]:
    """Train for a number of steps, and return about MARKS records of the resources in use."""
    watch = Watch(max(1, steps // MARKS))
    recipe = Recipe.load(measure.ROOT / "recipes/faces.toml", SOAK | {"train.iterations": steps})
    with tempfile.TemporaryDirectory() as folder:
        fit(recipe, Path(folder) / "soak", device, reporter=watch)
    return watch.rows


def verdict(rows: list[dict[str, float]]) -> tuple[bool, str]:
    """Judge whether anything has grown since memory has settled.

    Args:
        rows: The records of `Watch`.

    Returns:
        Whether memory, open files and threads have stayed the same, and a sentence with the numbers.
    """
    last = rows[-1]
    settled = next(row for row in rows if row["step"] >= min(SETTLED, last["step"] / 10))
    # Medians are compared because memory drops for moments: TensorBoard's protobuf trims the heap every 2,000 scalars.
    first = [row for row in rows if settled["step"] <= row["step"] <= 2 * settled["step"]]
    windows = first, rows[-len(first) :]
    changes, findings = {}, []
    for name in (name for name in MEMORY if name in last):
        early, late = (statistics.median(row[name] for row in window) for window in windows)
        changes[name] = late / early - 1
        steps = [f"{window[0]['step']:,} to {window[-1]['step']:,}" for window in windows]
        findings.append(
            f"{MEMORY[name]} {early:.1f} MiB (median of steps {steps[0]}), then {late:.1f} MiB (of {steps[1]}): "
            f"{changes[name]:+.2%}"
        )
    findings += [f"{name} {settled[key]} and {last[key]}" for key, name in COUNTED.items()]
    steady = all(abs(change) <= TOLERANCE for change in changes.values())
    steady = steady and all(last[key] <= settled[key] for key in COUNTED)
    return steady, f"{'Nothing grows' if steady else 'NOT STEADY'}: {'; '.join(findings)}."


def main() -> int:
    """Run the check and write a JSON file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    measure.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"the number of training steps; by default {STEPS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    about: dict[str, Any] = measure.machine(device) | {"steps": options.steps, "recipe": SOAK}
    rows = run(options.steps, device)
    steady, sentence = verdict(rows)
    path = measure.write(about | {"verdict": sentence, "rows": rows}, "soak", options.out)
    print(f"{sentence}\nWritten to {path}")
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
