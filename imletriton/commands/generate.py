"""From a model to a folder of PNGs: what the command line's `gen` calls."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from einops import rearrange
from PIL import Image

from imletriton.commands.checks import check_device, check_place
from imletriton.errors import InputError
from imletriton.runs.run import newest_checkpoint, write_whole

if TYPE_CHECKING:  # what is wrong is told before PyTorch is loaded
    import torch
    from torch import Tensor

    from imletriton.generator import Generator

MANIFEST = "gen.json"


def generate(
    source: Path,
    n: int,
    seed: int = 0,
    out: Path | None = None,
    device: "str | torch.device | None" = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Path, int]:
    """Write samples 0..n-1 of a seed as out/000000.png and so on; returns the folder and how many were new.

    source: a run (its newest checkpoint) or a checkpoint. out: by default RUN/gen/STEP-seed-SEED. Files that are there
    already are kept, so an interrupted call goes on. device: None takes cuda where there is one. Raises InputError for
    n < 1, a source that cannot be read, or a folder that holds something else or cannot be written.
    """
    if n < 1:
        raise InputError(f"--n must be at least 1, not {n}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, not {seed}.")
    if device is not None:
        check_device(str(device))
    checkpoint = _checkpoint(source)
    if out is None:
        run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint
        out = run / "gen" / f"{checkpoint.name}-seed-{seed}"
    mend = "make room, or choose another --out DIR"
    check_place(out, out, mend)
    try:
        manifest = _manifest(out, checkpoint, seed)

        from imletriton.generator import Generator
        from imletriton.system.device import choose_device

        model = Generator.from_pretrained(checkpoint).to(choose_device(device))
        if len(model.shape) != 3:
            raise InputError(f"{source} generates points, not pictures: look at the grids in its samples/ instead.")
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MANIFEST).exists():
            write_whole(out / MANIFEST, lambda file: file.write_text(manifest))
        missing = [k for k in range(n) if not (out / _name(k)).exists()]
        progress(n - len(missing))
        _write(model, missing, seed, out, lambda done: progress(n - len(missing) + done))
    except OSError as error:
        raise InputError(f"{error.filename or out} cannot be written ({error.strerror}): {mend}.") from error
    return out, len(missing)


def _checkpoint(source: Path) -> Path:
    """The folder of the model to generate from. Raises InputError where there is none."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder: name a run or a checkpoint.")
    checkpoint = newest_checkpoint(source) or source
    for name in ("config.json", "model.safetensors"):
        if not (checkpoint / name).is_file():
            raise InputError(f"{checkpoint} holds no {name}: name a run or a checkpoint folder that has one.")
    return checkpoint if checkpoint.parent.name else checkpoint.resolve()  # "000500", from inside checkpoints/


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _manifest(out: Path, checkpoint: Path, seed: int) -> str:
    """What marks samples of this model and seed. Raises InputError where the folder holds anything else."""
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    manifest = json.dumps({"model": weights, "seed": seed})
    if (path := out / MANIFEST).exists():
        if path.read_text() != manifest:
            raise InputError(f"{out} holds samples of another model or seed: choose another folder with --out DIR.")
    elif out.exists() and any(p.name != f".{MANIFEST}" for p in out.iterdir()):
        raise InputError(f"{out} holds other files: choose an empty or new folder with --out DIR.")
    return manifest


def _write(model: "Generator", missing: list[int], seed: int, out: Path, progress: Callable[[int], None]) -> None:
    """Generate the missing samples in order, encoding on all cores while the next ones are made."""
    wanted, done = set(missing), 0
    if not wanted:
        return
    first, last = missing[0], missing[-1]

    def encode(k: int, image: "Tensor") -> None:
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
