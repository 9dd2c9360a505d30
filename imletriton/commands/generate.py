"""Samples of a model as PNG files: what `imletriton gen` calls."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange
from PIL import Image

from imletriton.commands.checks import check_generate, check_writable
from imletriton.errors import InputError
from imletriton.runs.opening import Source, open_source
from imletriton.runs.reading import read_json
from imletriton.runs.run import write_whole

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch
    from torch import Tensor

    from imletriton.generator import Generator

MANIFEST = "gen.json"


def generate(
    source: str | Path | Source | None,
    n: int,
    seed: int = 0,
    out: Path | None = None,
    device: "str | torch.device | None" = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Path, int]:
    """Write samples 0 to n - 1 of a random seed as out/000000.png and so on.

    Files that exist already are kept, so that an interrupted call goes on where it stopped.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`.
        n: How many samples the folder shall hold, at least 1.
        seed: From 0 to 2^32 - 1. Sample k depends on the seed and k alone.
        out: The folder; by default RUN/gen/STEP-seed-SEED.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        progress: Called with the number of samples that exist so far.

    Returns:
        The folder, and how many samples are new in it.

    Raises:
        InputError: n or seed is out of range, the source cannot be used, or the folder holds something else or cannot
            be written.
    """
    check_generate(n, seed, None if device is None else str(device))
    opened = open_source(source)
    out = out or opened.run.generated(opened.version, seed)
    mend = "make room, or choose another folder with `out=DIR`"
    check_writable(out, out, mend)
    try:
        manifest = _manifest(out, opened.checkpoint, seed)

        from imletriton.generator import Generator
        from imletriton.system.device import choose_device

        model = Generator.from_pretrained(opened).to(choose_device(device))
        if len(model.shape) != 3:
            raise InputError(f"{opened.name} generates points, not pictures: `imletriton show` draws them.")
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MANIFEST).exists():
            write_whole(out / MANIFEST, lambda file: file.write_text(manifest))
        missing = [k for k in range(n) if not (out / _name(k)).exists()]
        progress(n - len(missing))
        _write(model, missing, seed, out, lambda done: progress(n - len(missing) + done))
    except OSError as error:
        raise InputError(f"{error.filename or out} cannot be written ({error.strerror}): {mend}.") from error
    return out, len(missing)


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _manifest(out: Path, checkpoint: Path, seed: int) -> str:
    """The text that marks a folder as holding samples of this model and seed.

    Raises:
        InputError: The folder holds other samples or other files.
    """
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    manifest = json.dumps({"model": weights, "seed": seed})
    if (path := out / MANIFEST).exists():
        known = read_json(path, dict[str, Any], "choose another folder with `out=DIR`")
        if known != json.loads(manifest):
            raise InputError(f"{out} holds samples of another model or seed: choose another folder with `out=DIR`.")
    elif out.exists() and any(p.name != f".{MANIFEST}" for p in out.iterdir()):
        raise InputError(f"{out} holds other files: choose an empty or new folder with `out=DIR`.")
    return manifest


def _write(model: "Generator", missing: list[int], seed: int, out: Path, progress: Callable[[int], None]) -> None:
    """Generate the missing samples in order, encoding on all cores while the next ones are generated."""
    wanted, done = set(missing), 0
    if not wanted:
        return
    first, last = missing[0], missing[-1]

    from imletriton.plotting.grids import save_picture  # here, as it imports PyTorch

    def encode(k: int, image: "Tensor") -> None:
        save_picture(out / _name(k), Image.fromarray(rearrange(image, "c h w -> h w c").numpy()))

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
