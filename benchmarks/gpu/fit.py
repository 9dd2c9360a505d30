"""Stage 4 of `make gpu`: a short run from end to end by the command line."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.items import ROOT, Bench, Item, Options, Result, row

STEPS, MORE, EVERY = 600, 100, 20
TINY_STEPS, TINY_MORE, TINY_EVERY = 120, 20, 10
RECIPE = {"data.source": "faces", "distance.weights": "random", "selection.pool": 1024, "selection.refresh": 8}
RECIPE |= {"train.compile": True}
TINY = {"data.resolution": 16, "generator.width": 8, "generator.blocks": "4x1,16m4", "generator.latent_dim": 8}
TINY |= {"distance.kind": "pixels", "selection.pool": "2n", "train.compile": False, "train.learning_rate": 0.005}
TOLERANCE, ROOM_MB = 1.02, 16  # by how much the peak memory may grow: as a factor, and in MiB


def waves(options: Options) -> list[list[list[Item]]]:
    """Train, resume, generate."""
    names = [("fit", fit, 230), ("resume", resume, 120), ("gen", generate, 40)]
    return [[[Item(name, work, 60 if options.tiny else seconds) for name, work, seconds in names]]]


def folder_of(bench: Bench) -> Path:
    """The run's folder; it is kept until the stage runs again, and git ignores it."""
    return ROOT / ".gpu" / f"run{'-rehearsal' if bench.tiny else ''}-{os.getppid()}"


def steps_of(bench: Bench) -> tuple[int, int, int]:
    """How many steps to train, how many more once resumed, and how many lie between two lines of the log."""
    return (TINY_STEPS, TINY_MORE, TINY_EVERY) if bench.tiny else (STEPS, MORE, EVERY)


def fit_arguments(bench: Bench, steps: int) -> list[str]:
    """The command that trains up to a step."""
    total, _, every = steps_of(bench)
    recipe: dict[str, Any] = RECIPE | (TINY if bench.tiny else {}) | {"train.iterations": steps, "log.every": every}
    # All that a run does now and then comes in each quarter, so that memory for the first time of it is no growth.
    recipe |= {f"log.{key}_every": total // 4 for key in ("samples", "checkpoint", "measure")}
    words = ["fit", str(ROOT / "recipes/dog.toml"), "--run-dir", str(folder_of(bench))]
    for key, value in recipe.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def fit(bench: Bench) -> Result:
    """Train, and see that the loss falls and that peak memory does not grow in the second half."""
    if not bench.tiny:
        bench.need("torchvision", "lpips")
    bench.need("tensorboard")
    steps = steps_of(bench)[0]
    shutil.rmtree(folder_of(bench), ignore_errors=True)
    seconds = run(bench, fit_arguments(bench, steps))
    log = read_log(folder_of(bench))
    first, last = log[0], log[-1]
    half = next(line for line in log if line["step"] >= steps / 2)
    rows = [row(f"fit, {steps} steps", seconds, "s")]
    rows.append(row("images a second, newest line", last.get("images_per_s") or 0.0, "/s"))
    rows.append(row("pool samples a second, newest pool", last.get("pool_per_s") or 0.0, "/s"))
    for name, line in (("first", first), ("last", last)):
        rows.append(row(f"loss, {name} line", line["loss"], ""))
    for name, line in (("after half of the steps", half), ("at the end", last)):
        rows.append(row(f"peak memory {name}", line["memory_mb"], "MiB"))
    bench.note({"log": log, "rows": rows})
    if last["memory_mb"] > half["memory_mb"] * TOLERANCE + ROOM_MB:
        raise RuntimeError(f"peak memory grows: {half['memory_mb']} MiB, then {last['memory_mb']} MiB")
    if not last["loss"] < first["loss"]:
        raise RuntimeError(f"the loss does not fall: {first['loss']:.4f}, then {last['loss']:.4f}")
    return {"rows": rows}


def resume(bench: Bench) -> Result:
    """Continue from the checkpoint."""
    steps, more, _ = steps_of(bench)
    seconds = run(bench, [*fit_arguments(bench, steps + more), "--resume"])
    last = read_log(folder_of(bench))[-1]
    if last["step"] != steps + more:
        raise RuntimeError(f"the log ends at step {last['step']}, not {steps + more}")
    return {"rows": [row(f"resumed, {more} steps", seconds, "s"), row("loss, resumed", last["loss"], "")]}


def generate(bench: Bench) -> Result:
    """Write 16 samples."""
    seconds = run(bench, ["gen", str(folder_of(bench)), "--n", "16"])
    written = len([*folder_of(bench).glob("gen/**/*.png")])
    shutil.rmtree(folder_of(bench), ignore_errors=True)
    if written < 16:
        raise RuntimeError(f"{written} pictures instead of 16")
    return {"rows": [row("gen, 16 samples", seconds, "s")]}


def run(bench: Bench, arguments: list[str]) -> float:
    """Call imletriton's command line on the device; the seconds it takes.

    Raises:
        RuntimeError: The command fails.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "imletriton", *arguments, "--device", bench.device.type]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [""]
        bench.note({"lines": lines[-12:]})
        raise RuntimeError(f"exit code {done.returncode}: {lines[-1]}")
    return time.monotonic() - began


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that tell of training, rather than of distances measured beside it."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("loss") is not None]
