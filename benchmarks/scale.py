"""Measure what grows with the number of pictures (python -m benchmarks.scale).

For 100, 1,000 and 10,000 of the built-in faces at 64x64, this measures the time and the additional peak memory of the
start of a trainer, its first round (also with smaller rounds), a training step and a checkpoint. Each is measured in a
process of its own, so that none finds memory that another one has left, and on one core, where other programs slow it
down least. Rounds do all they can do: rejection with an automatic radius, and the figures of the misalignment.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from benchmarks import measure
from imletriton.data.faces import faces
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import save_checkpoint
from imletriton.system.device import environment, set_up
from imletriton.training.build import build
from imletriton.training.state import state_of
from imletriton.training.trainer import Trainer

NUMBERS = 100, 1000, 10_000
RESOLUTION = 64
SCALE = {
    "name": "scale",
    "data.resolution": RESOLUTION,
    "generator.width": 32,
    "generator.blocks": "4x2,8m4,8x1,16m8,32m16,64m32",
    "generator.bottleneck": 0.25,
    "selection.strategy": "rejection",
    "selection.epsilon": "auto",
    "selection.pool": "10n",
}
PARTS = "pool", "selection", "figures"  # of a round, in this order
SHARE = 0.1  # of the data points in a smaller round
WHAT = {
    "start": "building a trainer, with the search features and the embeddings of all pictures",
    "round": "the first round: a pool of 10 n samples, finding the radius, the selection, the figures of a log line",
    "small round": f"the same with selection.share = {SHARE}: a pool of n samples",
    "step": "a training step",
    "checkpoint": "a checkpoint of all that resuming needs, on disk",
}


def measured(what: str, n: int, pictures: Path, device: torch.device) -> dict[str, Any]:
    """Measure one entry of WHAT in this process.

    Args:
        what: The entry.
        n: The number of pictures.
        pictures: An .npy file of pictures, uint8 [n or more, 3, 64, 64].
        device: Where to train.

    Returns:
        The seconds it takes and the bytes of memory at its peak, with n, `what` and the parts of it.
    """
    set_up(device)  # as `fit` does
    torch.set_num_threads(1)
    changes = {"selection.share": SHARE} if what == "small round" else {}
    recipe = Recipe.load(measure.ROOT / "recipes/faces.toml", SCALE | changes)
    points = torch.from_numpy(np.load(pictures, mmap_mode="c")[:n])
    found: dict[str, Any] = {"what": what, "n": n}
    if what == "start":
        build(recipe, points[:32], device)  # to warm up
        return found | once(lambda: build(recipe, points, device), device)
    trainer = build(recipe, points, device)
    if what == "step":
        return found | often(lambda _: trainer.train_step(), device)
    if what == "checkpoint":
        with tempfile.TemporaryDirectory() as folder:
            found |= often(lambda k: save(trainer, Path(folder), k), device)
            return found | {"bytes": sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())}
    return found | first_round(trainer, device)


def first_round(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """Measure a trainer's first round: the seconds of the pool, of the selection and of the figures for the log."""
    for _ in zip(range(2), trainer.pool.draw(0), strict=False):  # two chunks to warm up
        pass
    times = [0.0] * 4

    def work() -> None:
        times[:2] = [time.perf_counter()] * 2
        for _ in trainer.start_epoch():
            times[1] = time.perf_counter()
        times[2] = time.perf_counter()
        trainer.take_metrics()
        times[3] = time.perf_counter()

    found = once(work, device)
    parts = dict(zip(PARTS, np.diff(times).tolist(), strict=True))
    return found | {f"{part}_s": seconds for part, seconds in parts.items()} | {"samples": trainer.pool.size}


def save(trainer: Trainer, folder: Path, step: int) -> None:
    """Save a checkpoint as `fit` does, and remove the one before."""
    tensors, state = state_of(trainer)
    save_checkpoint(folder, step, trainer.ema, tensors, state | {"environment": environment(trainer.device)}, keep=1)


def once(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Measure the seconds and the memory of a call that takes long."""
    seconds = []
    memory = measure.extra_memory(lambda: seconds.append(measure.seconds(work, device)), device)
    return {"seconds": seconds[0], "memory": memory}


def often(work: Callable[[int], Any], device: torch.device) -> dict[str, float]:
    """Measure the memory of a call, after one to warm up, and the median seconds of several."""
    work(0)
    memory = measure.extra_memory(lambda: work(1), device)
    return {"seconds": measure.times({"work": lambda k: work(k + 2)}, device)["work"].median, "memory": memory}


def alone(what: str, n: int, pictures: Path, device: torch.device) -> dict[str, Any]:
    """As `measured`, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measured, what, n, pictures, device).result()


def run(numbers: Sequence[int], device: torch.device) -> list[dict[str, Any]]:
    """Measure every entry of WHAT for each number of pictures; what `measured` returns of each."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "faces.npy"
        np.save(pictures, rearrange(faces(RESOLUTION, max(numbers)), "n h w c -> n c h w"))
        rows = []
        for n in numbers:
            for what in WHAT:
                rows.append(alone(what, n, pictures, device))
                print(
                    f"{what}, n = {n:,}: {rows[-1]['seconds']:.3g} s, {rows[-1]['memory'] / 2**20:,.1f} MiB", flush=True
                )
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format what `run` returns as a table in Markdown, with a column for each number of pictures."""
    numbers = sorted({row["n"] for row in rows})
    head = ["", *(f"n = {n:,}" for n in numbers)]
    body = [head, ["---", *["---:"] * len(numbers)]]
    for what in WHAT:
        found = [row for n in numbers for row in rows if (row["what"], row["n"]) == (what, n)]
        seconds, memory = [row["seconds"] for row in found], [row["memory"] for row in found]
        body.append([f"**{what}**: seconds", *(f"{s:.3g}" for s in seconds)])
        for part in PARTS if "pool_s" in found[0] else ():
            body.append([f"of these, {part}", *(f"{row[f'{part}_s']:.3g}" for row in found)])
        if "samples" in found[0]:
            body.append(
                [
                    "milliseconds of the pool for each sample",
                    *(f"{1e3 * r['pool_s'] / r['samples']:.3g}" for r in found),
                ]
            )
        body.append(["MiB at the peak", *(f"{m / 2**20:.1f}" for m in memory)])
        if "bytes" in found[0]:
            body.append(["MiB on disk", *(f"{row['bytes'] / 2**20:.1f}" for row in found)])
        further = [
            (b - a) / (m - n) / 1024 for n, m, a, b in zip(numbers, numbers[1:], memory, memory[1:], strict=False)
        ]
        body.append(["KiB of memory for each further picture", "", *(f"{kib:.1f}" for kib in further)])
    return [f"| {' | '.join(cells)} |" for cells in body]


def main() -> None:
    """Measure, print the table, and write it beside a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    measure.add_arguments(parser, "the folder for the JSON file and the table")
    device = torch.device((options := parser.parse_args()).device)
    about = measure.machine(device) | {"threads": 1, "load": os.getloadavg()[0], "what": WHAT, "recipe": SCALE}
    rows = run(NUMBERS, device)
    print(text := "\n".join(table(rows)))
    path = measure.write(about | {"rows": rows}, "scale", options.out)
    path.with_suffix(".md").write_text(f"{text}\n")
    print(f"Written to {path}, and the table beside it (.md)")


if __name__ == "__main__":
    main()
