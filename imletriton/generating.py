"""From a model to a folder of PNGs: what the command line's `gen` calls."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.run import newest_checkpoint, write_whole

MANIFEST = "gen.json"


def generate(
    source: Path,
    n: int,
    seed: int = 0,
    out: Path | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Path, int]:
    """Write samples 0..n-1 of a seed as out/000000.png and so on; returns the folder and how many were new.

    source: a run (its newest checkpoint) or a checkpoint. out: by default RUN/gen/STEP-seed-SEED. Files that are there
    already are kept, so an interrupted call goes on. Raises InputError for n < 1, a source that cannot be read, or a
    folder that holds something else or cannot be written.
    """
    if n < 1:
        raise InputError(f"--n must be at least 1, not {n}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, not {seed}.")
    if not source.is_dir():
        raise InputError(f"{source} is no folder: name a run or a checkpoint.")
    checkpoint = newest_checkpoint(source) or source
    if not checkpoint.parent.name:  # "000500", from inside checkpoints/
        checkpoint = checkpoint.resolve()
    model = Generator.from_pretrained(checkpoint).to(device or "cpu")
    if len(model.shape) != 3:
        raise InputError(f"{source} generates points, not pictures: look at the grids in its samples/ instead.")
    if out is None:
        run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint
        out = run / "gen" / f"{checkpoint.name}-seed-{seed}"
    try:
        _claim(out, checkpoint, seed)
        missing = [k for k in range(n) if not (out / _name(k)).exists()]
        progress(n - len(missing))
        _write(model, missing, seed, out, lambda done: progress(n - len(missing) + done))
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be written ({error.strerror}): make room, or choose another --out DIR."
        ) from error
    return out, len(missing)


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _claim(out: Path, checkpoint: Path, seed: int) -> None:
    """Make the folder, or see that what it holds comes from the same model and seed."""
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    manifest = {"model": weights, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    path = out / MANIFEST
    if path.exists():
        if path.read_text() != json.dumps(manifest):
            raise InputError(f"{out} holds samples of another model or seed: choose another folder with --out DIR.")
    elif any(p.name != f".{MANIFEST}" for p in out.iterdir()):
        raise InputError(f"{out} holds other files: choose an empty or new folder with --out DIR.")
    else:
        write_whole(path, lambda unfinished: unfinished.write_text(json.dumps(manifest)))


def _write(model: Generator, missing: list[int], seed: int, out: Path, progress: Callable[[int], None]) -> None:
    """Generate the missing samples in order, encoding on all cores while the next ones are made."""
    wanted, done = set(missing), 0
    if not wanted:
        return
    first, last = missing[0], missing[-1]

    def encode(k: int, image: Tensor) -> None:
        picture = Image.fromarray(rearrange(image, "c h w -> h w c").numpy())
        write_whole(out / _name(k), lambda unfinished: picture.save(unfinished, "PNG"))

    with ThreadPoolExecutor(os.cpu_count()) as encoders:
        k, jobs = first, list[Future[None]]()
        for batch in model.sample_batches(last - first + 1, seed, first):
            images = batch.cpu()
            for job in jobs:  # of the batch before
                job.result()
            progress(done := done + len(jobs))
            jobs = [encoders.submit(encode, k + i, image) for i, image in enumerate(images) if k + i in wanted]
            k += len(images)
        for job in jobs:
            job.result()
        progress(done + len(jobs))
