"""Samples of a model as PNG files: `imletriton gen`."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from einops import rearrange
from PIL import Image

from imletriton.data.files import SUFFIXES
from imletriton.data.folder import BrokenImage, open_image
from imletriton.errors import InputError
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.reading import regular
from imletriton.sections import MAX_SAMPLES
from imletriton.share.latents import check_latents, load_latents, model_hash
from imletriton.share.origin import Maker, Origin, check_like, codes_of, near, read_origin
from imletriton.system.checks import MAKE_ROOM, MAX_SEED, check_device, check_range, check_writable
from imletriton.training.reporter import Progress, silent

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch
    from torch import Tensor

    from imletriton.generator import Generator

DRAWN_AT_ONCE = 64  # latent codes that are drawn between two calls of `progress`
MANIFEST = "gen.json"  # says whose samples a folder holds, and is locked by the process that writes there

Key = Mapping[str, int | float | str]
Batch = tuple["Tensor", list[Origin]]  # pictures, uint8 [b, 3, H, W], and what each was made from
Batches = Callable[[int, int], Iterator[Batch]]  # of the pictures from the first to the last


class Generated(NamedTuple):
    """What `generate` has done."""

    folder: Path
    new: int  # samples that were made
    damaged: int  # of these, samples whose files existed but were not whole pictures


def generate(
    source: str | PathLike[str] | Source | None = None,
    n: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    device: "str | torch.device | None" = None,
    progress: Progress = silent,
    latents: str | Path | None = None,
    like: str | Path | None = None,
    distance: float | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Generated:
    """Write samples 0 to n - 1 of a random seed, or others, as out/000000.png and so on.

    The metadata of each picture says what it was made from. Whole pictures that exist already are kept, so that an
    interrupted call goes on where it stopped.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        n: How many samples the folder is to hold; by default 64, or as many as there are latent codes.
        seed: The random seed, by default 0. Sample k depends on the seed and k alone.
        out: The folder; by default RUN/gen/STEP-seed-SEED.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        progress: Called with "samples", the number of samples that exist so far, and n.
        latents: A file of latent codes, as `project` writes it. Their samples are written instead of a seed's, by
            default into RUN/gen/STEP-from-NAME.
        like: A picture of this model, as this function or `explore` writes it. Its neighbours are written instead of
            samples, by default into RUN/gen/STEP-like-NAME-DISTANCE-seed-SEED. Neighbour k depends on the picture, the
            distance, the seed and k alone.
        distance: How far the neighbours are from the picture, by default 0.3: near 0 they look the same, at 1 they have
            nothing in common with it.
        note: Called with a sentence that names the run, where none was given.

    Returns:
        The folder, and how many samples were made.

    Raises:
        InputError: A number is out of range, options do not go together, the source cannot be used, or the folder holds
            something else, is being written by another process or cannot be written.
    """
    out, latents, like = (Path(path) if path else None for path in (out, latents, like))
    n, seed, distance = _numbers(n, seed, distance, latents, like)
    check_device(device)
    if out and out.suffix.lower() in SUFFIXES:
        raise InputError(f"{out} is named like one picture, but samples go into a folder: name one with `out=DIR`.")
    opened = open_source(source)
    if source is None:
        note(f"The newest run is {opened.run.path}.")
    name, key = _named(seed, latents, like, distance)
    folder = out or opened.run.generated(opened.version, name)
    check_writable(folder, folder, MAKE_ROOM)
    try:
        with still_there(opened.checkpoint):
            _check_folder(folder, _manifest(opened.checkpoint, key))

        from imletriton.generator import Generator
        from imletriton.system.device import choose_device

        opened = opened.now()
        folder = out or opened.run.generated(opened.version, name)
        with still_there(opened.checkpoint):
            manifest = _manifest(opened.checkpoint, key)
            model = Generator.from_pretrained(opened).to(choose_device(device))
            if len(model.shape) != 3:
                raise InputError(f"{opened.name} generates points, not pictures: `imletriton show` draws them.")
            batches = _batches(model, opened, seed, latents, like, distance)
        folder.mkdir(parents=True, exist_ok=True)
        with _claimed(folder, manifest):
            there = [k for k in range(n) if (folder / _name(k)).exists()]
            damaged = _damaged(folder, there, model.shape[1:])
            missing = sorted({*range(n)} - {*there} | damaged)
            progress("samples", n - len(missing), n)
            _write(batches, missing, folder, lambda done: progress("samples", n - len(missing) + done, n))
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written ({error.strerror}): {MAKE_ROOM}.") from error
    return Generated(folder, len(missing), len(damaged))


def _numbers(
    n: int | None, seed: int | None, distance: float | None, latents: Path | None, like: Path | None
) -> tuple[int, int, float]:
    """The number of samples, the seed and the distance, checked and with their defaults."""
    if latents and like:
        raise InputError("`latents` and `like` both say which samples are written: leave one of them out.")
    if latents and seed is not None:
        raise InputError("`latents` says which samples are written: leave `seed` out.")
    if distance is not None and not like:
        raise InputError("`distance` is how far samples are from a picture: name it with `like=FILE.png`.")
    seed, distance = 0 if seed is None else seed, 0.3 if distance is None else distance
    check_range("seed", seed, 0, MAX_SEED)
    if latents:
        count = check_latents(latents)
        if n not in (None, count):
            raise InputError(f"{latents} decides on the number of samples, which is {count}: leave `n` out.")
        return count, seed, distance
    n = 64 if n is None else n
    check_range("n", n, 1, MAX_SAMPLES)
    if like:
        check_like(like, distance)
    return n, seed, distance


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _manifest(checkpoint: Path, key: Key) -> str:
    """The text that says which samples a folder holds: of this model, and of a seed, latent codes or a picture."""
    return json.dumps({"model": model_hash(checkpoint), **key})


def _check_folder(out: Path, manifest: str) -> None:
    """Raise InputError where a folder holds the samples of another manifest, or other files."""
    path = out / MANIFEST
    found = regular(path).read_text("utf-8", "replace") if path.exists() else ""
    unfinished = found != manifest and manifest.startswith(found)  # of a process that was killed while it wrote this
    if found != manifest and not unfinished:
        says = f"{path} says that the samples are of another model, seed or latent codes, or is damaged"
        raise InputError(f"{says}: choose another folder with `out=DIR`.")
    if unfinished and out.exists() and any(p.name != MANIFEST for p in out.iterdir()):
        raise InputError(f"{out} holds other files: choose an empty or new folder with `out=DIR`.")


@contextlib.contextmanager
def _claimed(out: Path, manifest: str) -> Iterator[None]:
    """Lock a folder while this process writes the samples of a manifest into it.

    Raises:
        InputError: Another process holds the lock, or has put other samples there in the meantime.
    """
    with (out / MANIFEST).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is writing samples into {out}: wait for it, then call this again for those that are "
                "missing, or choose another folder with `out=DIR`."
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
    """The numbers of the samples whose files are not whole PNG files of this height and width."""

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


def _named(seed: int, latents: Path | None, like: Path | None, distance: float) -> tuple[str, Key]:
    """The end of the folder's default name, and what its manifest holds besides the model."""
    if latents:
        return f"from-{latents.stem}", {"latents": hashlib.sha256(latents.read_bytes()).hexdigest()}
    if like:
        key: Key = {"like": read_origin(like).digest, "distance": distance, "seed": seed}
        return f"like-{like.stem}-{distance:g}-seed-{seed}", key
    return f"seed-{seed}", {"seed": seed}


def _batches(
    model: "Generator", source: Source, seed: int, latents: Path | None, like: Path | None, distance: float
) -> Batches:
    """The pictures that `generate` was asked for."""
    maker = Maker.of(source)
    if latents:
        return partial(_given, model, maker, load_latents(latents, source, model.latent_dim))
    if like:
        return partial(_neighbours, model, maker, *codes_of(like, maker, model.latent_dim), distance, seed)
    return partial(_samples, model, maker, seed)


def _samples(model: "Generator", maker: Maker, seed: int, first: int, last: int) -> Iterator[Batch]:
    """The samples from the first to the last of a random seed."""
    for images in model.sample_batches(last - first + 1, seed, first):
        numbers = range(first, first := first + len(images))
        yield images, [Origin.of(maker, None, f"sample {k} of seed {seed}", seed, k) for k in numbers]


def _given(model: "Generator", maker: Maker, codes: "Tensor", first: int, last: int) -> Iterator[Batch]:
    """The samples from the first to the last of given latent codes."""
    for part in codes[first : last + 1].split(DRAWN_AT_ONCE):
        yield model.draw(part), [Origin.of(maker, z[None], "a given latent code") for z in part]


def _neighbours(
    model: "Generator", maker: Maker, origin: Origin, codes: "Tensor", distance: float, seed: int, first: int, last: int
) -> Iterator[Batch]:
    """The neighbours from the first to the last of a picture."""
    from imletriton.share.variations import neighbours  # here, as it imports PyTorch

    for moved, images in neighbours(model, codes, distance, seed, first, last + 1):
        yield images, [Origin.of(maker, z, near(origin.made)) for z in moved]


def _write(batches: Batches, missing: list[int], out: Path, progress: Callable[[int], None]) -> None:
    """Take the missing samples from batches(first, last), encoding on all cores while the next ones are generated."""
    wanted, done = set(missing), 0
    if not wanted:
        return
    first, last = missing[0], missing[-1]

    from imletriton.plotting.grids import save_picture  # here, as it imports PyTorch

    def encode(k: int, image: "Tensor", origin: Origin) -> None:
        save_picture(out / _name(k), Image.fromarray(rearrange(image, "c h w -> h w c").numpy()), origin.text)

    with ThreadPoolExecutor(os.cpu_count()) as encoders:
        k, jobs = first, list[Future[None]]()
        for batch, origins in batches(first, last):
            pairs = list(zip(batch.cpu(), origins, strict=True))
            for job in jobs:  # of the batch before
                job.result()
            progress(done := done + len(jobs))
            jobs = [encoders.submit(encode, k + i, *pair) for i, pair in enumerate(pairs) if k + i in wanted]
            k += len(pairs)
        for job in jobs:
            job.result()
        progress(done + len(jobs))
