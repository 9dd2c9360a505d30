"""Stage 4 of `make gpu`: a short run from end to end, by the command line, with its memory watched."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.gpu_items import ROOT, Bench, Item, Options, Result, row

STEPS, MORE, EVERY = 600, 100, 20
TINY_STEPS, TINY_MORE, TINY_EVERY = 120, 20, 10
RECIPE = {"data.source": "faces", "distance.weights": "random", "selection.pool": 1024, "selection.refresh": 8}
RECIPE |= {"train.compile": True}
TINY = {"data.resolution": 16, "generator.width": 8, "generator.blocks": "4x1,16m4", "generator.latent_dim": 8}
TINY |= {"distance.kind": "pixels", "selection.pool": "2n", "train.compile": False, "train.learning_rate": 0.005}
TOLERANCE, ROOM_MB = 0.02, 16.0  # by how much memory may grow: relatively, or in MiB
PAUSE = 0.25  # seconds between two looks at the memory


def waves(options: Options) -> list[list[list[Item]]]:
    """Train, resume, generate."""
    tiny = options.tiny
    names = [("fit", fit, 230), ("resume", resume, 120), ("gen", generate, 40)]
    return [[[Item(name, work, 60 if tiny else seconds) for name, work, seconds in names]]]


def folder_of(bench: Bench) -> Path:
    """The run's folder; it is kept until the stage runs again, and git ignores it."""
    return ROOT / ".gpu" / f"run{'-rehearsal' if bench.tiny else ''}-{os.getppid()}"


def steps_of(bench: Bench) -> tuple[int, int, int]:
    """How many steps to train, how many more once resumed, and how many lie between two lines of the log."""
    return (TINY_STEPS, TINY_MORE, TINY_EVERY) if bench.tiny else (STEPS, MORE, EVERY)


def fit_command(bench: Bench, steps: int, every: int) -> list[str]:
    """The command that trains up to a step."""
    recipe = RECIPE | (TINY if bench.tiny else {}) | {"train.iterations": steps, "log.every": every}
    # All that a run does now and then comes in each quarter, so that memory for the first time of it is no growth.
    recipe |= {f"log.{key}_every": steps_of(bench)[0] // 4 for key in ("samples", "checkpoint", "measure")}
    words = [sys.executable, "-m", "imletriton", "fit", str(ROOT / "recipes/dog.toml")]
    words += ["--run-dir", str(folder_of(bench)), "--device", bench.device.type]
    for key, value in recipe.items():
        words += ["--set", f"{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    return words


def fit(bench: Bench) -> Result:
    """Train, and see that the losses fall and that memory does not grow."""
    if not bench.tiny:
        bench.need("torchvision", "lpips")
    bench.need("tensorboard")
    steps, _, every = steps_of(bench)
    folder = folder_of(bench)
    shutil.rmtree(folder, ignore_errors=True)
    seconds, memory = watched(bench, fit_command(bench, steps, every))
    log = read_log(folder)
    bench.note({"log": log, "memory": memory})
    rows = [row(f"fit, {steps} steps", seconds, "s")]
    rows += [row("images a second, newest line", log[-1].get("images_per_s") or 0.0, "/s")]
    rows += [row("pool samples a second, newest pool", log[-1].get("pool_per_s") or 0.0, "/s")]
    rows += [row(f"loss, line {name}", log[k]["loss"], "") for name, k in (("1", 0), ("last", -1))]
    for name in ("resident_mb", "gpu_mb"):
        early, late = halves(memory, name, steps)
        if late is not None and early is not None:
            rows.append(row(f"{name[:-3]} memory in the third quarter", early, "MiB"))
            rows.append(row(f"{name[:-3]} memory in the fourth quarter", late, "MiB"))
            if late > early * (1 + TOLERANCE) + ROOM_MB:
                bench.note({"rows": rows})
                raise RuntimeError(f"{name[:-3]} memory grows: {early:.0f} MiB, then {late:.0f} MiB")
    bench.note({"rows": rows})
    if not log[-1]["loss"] < log[0]["loss"]:
        raise RuntimeError(f"the loss does not fall: {log[0]['loss']:.4f}, then {log[-1]['loss']:.4f}")
    return {"rows": rows}


def resume(bench: Bench) -> Result:
    """Go on from the checkpoint."""
    steps, more, every = steps_of(bench)
    seconds, _ = watched(bench, [*fit_command(bench, steps + more, every), "--resume"])
    log = read_log(folder_of(bench))
    if log[-1]["step"] != steps + more:
        raise RuntimeError(f"the log ends at step {log[-1]['step']}, not {steps + more}")
    return {"rows": [row(f"resumed, {more} steps", seconds, "s"), row("loss, resumed", log[-1]["loss"], "")]}


def generate(bench: Bench) -> Result:
    """Write 16 samples."""
    command = [sys.executable, "-m", "imletriton", "gen", str(folder_of(bench)), "--n", "16"]
    seconds, _ = watched(bench, [*command, "--device", bench.device.type])
    written = [*folder_of(bench).glob("gen/**/*.png")]
    shutil.rmtree(folder_of(bench), ignore_errors=True)
    if len(written) < 16:
        raise RuntimeError(f"{len(written)} pictures instead of 16")
    return {"rows": [row("gen, 16 samples", seconds, "s")]}


def watched(bench: Bench, command: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """Run a command; the seconds it takes, and its memory at many moments, each with the newest step in the log.

    Raises:
        RuntimeError: The command fails.
    """
    rows, began = list[dict[str, Any]](), time.monotonic()
    before = measure.used_memory(bench.device) if bench.device.type == "cuda" else 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    while process.poll() is None:
        said += process.stdout.readlines()
        if resident := resident_mb(process.pid):
            log = read_log(folder_of(bench))
            look = {"s": round(time.monotonic() - began, 1), "step": log[-1]["step"] if log else 0}
            look["resident_mb"] = round(resident, 1)
            if bench.device.type == "cuda":
                look["gpu_mb"] = round((measure.used_memory(bench.device) - before) / 2**20, 1)
            rows.append(look)
        time.sleep(PAUSE)
    said += process.stdout.readlines()
    if process.returncode:
        bench.note({"lines": [line.rstrip() for line in said[-12:]]})
        raise RuntimeError(f"exit code {process.returncode}: {said[-1].strip() if said else ''}")
    return time.monotonic() - began, rows


def resident_mb(pid: int) -> float | None:
    """The memory that a process has written itself, in MiB; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) / 1024 if found else None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that are complete and tell of training, rather than of distances measured beside it."""
    file = folder / "log.jsonl"
    text = file.read_text() if file.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1] if line]
    return [line for line in lines if line.get("loss") is not None]


def halves(rows: list[dict[str, Any]], name: str, steps: int) -> tuple[float | None, float | None]:
    """The medians of a memory in the third and the fourth quarter of the steps; None where it was not looked at."""

    def median(first: float, last: float) -> float | None:
        values = [r[name] for r in rows if name in r and first * steps <= r["step"] < last * steps]
        return statistics.median(values) if values else None

    return median(0.5, 0.75), median(0.75, 1.01)
