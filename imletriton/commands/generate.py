"""Samples of a model as PNG files: what `imletriton gen` calls."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from einops import rearrange
from PIL import Image

from imletriton.commands.checks import check_generate, check_writable
from imletriton.commands.reporter import Progress, silent
from imletriton.data.files import SUFFIXES
from imletriton.data.folder import BrokenImage, open_image
from imletriton.errors import InputError
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.reading import regular

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch
    from torch import Tensor

    from imletriton.generator import Generator

MANIFEST = "gen.json"  # says whose samples a folder holds; who writes there holds its lock


class Generated(NamedTuple):
    """What `generate` has done."""

    folder: Path
    new: int  # samples that were made
    damaged: int  # of them, those whose files were there but no whole pictures


def generate(
    source: str | PathLike[str] | Source | None = None,
    n: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    device: "str | torch.device | None" = None,
    progress: Progress = silent,
) -> Generated:
    """Write samples 0 to n - 1 of a random seed as out/000000.png and so on.

    Whole pictures that exist already are kept, so that an interrupted call goes on where it stopped.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        n: How many samples the folder shall hold, at least 1.
        seed: From 0 to 2^32 - 1. Sample k depends on the seed and k alone.
        out: The folder; by default RUN/gen/STEP-seed-SEED.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        progress: Called with "samples", the number of samples that exist so far, and n.

    Returns:
        The folder, and how many samples were made.

    Raises:
        InputError: n or seed is out of range, the source cannot be used, or the folder holds something else, is being
            written by another process or cannot be written.
    """
    check_generate(n, seed, None if device is None else str(device))
    out = Path(out) if out else None
    if out and out.suffix.lower() in SUFFIXES:
        raise InputError(f"{out} is named like one picture, but samples go into a folder: name one with `out=DIR`.")
    opened = open_source(source)
    folder = out or opened.run.generated(opened.version, seed)
    mend = "make room, or choose another folder with `out=DIR`"
    check_writable(folder, folder, mend)
    try:
        with still_there(opened.checkpoint):
            _check_folder(folder, _manifest(opened.checkpoint, seed))

        from imletriton.generator import Generator
        from imletriton.system.device import choose_device

        opened = opened.now()
        folder = out or opened.run.generated(opened.version, seed)
        with still_there(opened.checkpoint):
            manifest = _manifest(opened.checkpoint, seed)
            model = Generator.from_pretrained(opened).to(choose_device(device))
        if len(model.shape) != 3:
            raise InputError(f"{opened.name} generates points, not pictures: `imletriton show` draws them.")
        folder.mkdir(parents=True, exist_ok=True)
        with _claimed(folder, manifest):
            there = [k for k in range(n) if (folder / _name(k)).exists()]
            damaged = _damaged(folder, there, model.shape[1:])
            missing = sorted({*range(n)} - {*there} | damaged)
            progress("samples", n - len(missing), n)
            _write(model, missing, seed, folder, lambda done: progress("samples", n - len(missing) + done, n))
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written ({error.strerror}): {mend}.") from error
    return Generated(folder, len(missing), len(damaged))


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _manifest(checkpoint: Path, seed: int) -> str:
    """The text that marks a folder as holding samples of this model and seed."""
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    return json.dumps({"model": weights, "seed": seed})


def _check_folder(out: Path, manifest: str) -> None:
    """Raise InputError where a folder holds samples that another manifest tells of, or other files."""
    path = out / MANIFEST
    found = regular(path).read_text("utf-8", "replace") if path.exists() else ""
    unfinished = found != manifest and manifest.startswith(found)  # of a process that was killed while it wrote this
    if found != manifest and not unfinished:
        tells = f"{path} tells of another model or seed, or is damaged"
        raise InputError(f"{tells}: choose another folder with `out=DIR`.")
    if unfinished and out.exists() and any(p.name != MANIFEST for p in out.iterdir()):
        raise InputError(f"{out} holds other files: choose an empty or new folder with `out=DIR`.")


@contextlib.contextmanager
def _claimed(out: Path, manifest: str) -> Iterator[None]:
    """Lock a folder for the samples that its manifest tells of, for as long as this process writes them.

    Raises:
        InputError: Another process holds the lock, or has made the folder another model's meanwhile.
    """
    with (out / MANIFEST).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process writes samples into {out}: wait for it, then call this again for what is missing, "
                "or choose another folder with `out=DIR`."
            ) from None
        _check_folder(out, manifest)  # again, now that nobody else writes there
        if (out / MANIFEST).stat().st_size < len(manifest):
            file.truncate(0)
            file.write(manifest)
            file.flush()
        for unfinished in out.glob(".*.png*"):  # of a process that was killed
            unfinished.unlink()
        yield


def _damaged(out: Path, numbers: list[int], shape: tuple[int, ...]) -> set[int]:
    """Which of the samples that are there are no whole PNG files of this height and width."""

    def whole(k: int) -> bool:
        try:
            with open_image(out / _name(k)) as picture:
                fits = picture.format == "PNG" and (picture.height, picture.width) == shape and picture.mode == "RGB"
                picture.verify()  # the check sums, to the end of the file
                return fits
        except BrokenImage:
            return False

    with ThreadPoolExecutor(os.cpu_count()) as readers:
        return {k for k, is_whole in zip(numbers, readers.map(whole, numbers), strict=True) if not is_whole}


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
