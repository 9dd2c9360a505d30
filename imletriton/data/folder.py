"""Read a folder of images of any size and mode into one array."""

import contextlib
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imletriton.data import cache
from imletriton.data.files import MAX_FILE_BYTES, list_training_images, skipped
from imletriton.errors import InputError, notice, printable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # whatever the suffix; Pillow runs other programs for some others
MAX_PIXELS = 120_000_000  # more than a phone's 108 million; a small file can claim to have many more
THREADS = 8  # at most, as each may hold an image of MAX_PIXELS
LONG = 5  # seconds; images whose decoding takes longer are cached
NAMED = 20  # broken images that a message names
Progress = Callable[[int, int], None]  # called with the number of images decoded, and their total


class BrokenImage(Exception):  # noqa: N818  # said of a file
    """An image cannot be read, or must not be; the message is the reason, without the file's name."""


class Decoded(NamedTuple):
    """Images that were read from files."""

    images: np.ndarray  # uint8 [n, 3, side, side]; undefined where an image is broken
    sizes: list[tuple[int, int] | None]  # width and height of each file's image in pixels; None if it is broken
    broken: dict[int, str]  # why an image cannot be read, by its index


def read_folder(folder: str | Path, resolution: int, progress: Progress = lambda done, total: None) -> np.ndarray:
    """Read every image in a folder and below it, cropped to its central square and resized.

    If this takes longer than LONG, the result is cached. A notice describes what the folder holds besides images.

    Args:
        folder: The folder.
        resolution: The side of the returned images, in pixels.
        progress: Called after each image.

    Returns:
        uint8 [n, 3, resolution, resolution], in the order of the files' paths.

    Raises:
        InputError: The folder is missing or unreadable, holds fewer than two images, or holds broken ones.
    """
    files = list_training_images(folder)
    if others := skipped(folder):
        notice(others)
    progress(0, len(files))
    place = cache.place(files, resolution, _threads())
    try:
        if place and (kept := cache.load(place, (len(files), 3, resolution, resolution), np.uint8)) is not None:
            progress(len(files), len(files))
            return kept
    except cache.DamagedError:
        notice(f"The decoded pictures in {place} were damaged, so they are decoded anew.")
    began = time.perf_counter()
    images, _, broken = read_images(files, resolution, progress)
    _refuse(broken, files, folder)
    # Where a file has changed meanwhile, the place no longer belongs to what was decoded.
    if place and time.perf_counter() - began > LONG and place == cache.place(files, resolution, _threads()):
        cache.save(place, images)
    return images


def sizes(folder: str | Path, files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return the widths and heights in pixels of a folder's images, without decoding them.

    Raises InputError if the header of a file cannot be read.
    """
    found, broken = [], {}
    with _without_warnings():
        for k, file in enumerate(files):
            try:
                with open_image(file) as opened:
                    found.append(opened.size)
            except BrokenImage as error:
                broken[k] = str(error)
    _refuse(broken, files, folder)
    return found


def _refuse(broken: Mapping[int, str], files: Sequence[Path], folder: str | Path) -> None:
    """Raise InputError if images are broken: `broken` has the reasons by the indices of files."""
    if broken:
        root = Path(folder).expanduser()
        named = [f"{files[k].relative_to(root)} ({reason})" for k, reason in list(broken.items())[:NAMED]]
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise InputError(
            f"{len(broken)} of {len(files)} images in {folder} cannot be read: {', '.join(named)}{more}; "
            "repair or remove them."
        )


def read_images(files: Sequence[Path], resolution: int, progress: Progress = lambda done, total: None) -> Decoded:
    """Read images as `read_image` does, several at once; progress is called after each."""
    images = np.empty((len(files), 3, resolution, resolution), np.uint8)

    def decode(k: int) -> tuple[int, int] | BrokenImage:
        try:
            with open_image(files[k]) as opened:
                size = opened.size
                images[k] = _squared(opened, resolution).transpose(2, 0, 1)
        except BrokenImage as error:
            return error
        return size

    sizes: list[tuple[int, int] | None] = []
    broken = {}
    with _without_warnings(), ThreadPoolExecutor(_threads()) as pool:  # Pillow and NumPy release Python's lock
        for k, result in enumerate(pool.map(decode, range(len(files)))):
            if isinstance(result, BrokenImage):
                broken[k] = str(result)
            sizes.append(None if isinstance(result, BrokenImage) else result)
            progress(k + 1, len(files))
    return Decoded(images, sizes, broken)


def read_image(file: Path, resolution: int) -> np.ndarray:
    """Read one image as uint8 [resolution, resolution, 3]; raises BrokenImage if it cannot be read.

    It is rotated as its EXIF data says, cropped to its central square, and resized with antialiasing.
    """
    with _without_warnings(), open_image(file) as opened:
        return _squared(opened, resolution)


@contextlib.contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open one image of the FORMATS, whose pixels are decoded when they are first used.

    Raises:
        BrokenImage: The image has more than MAX_PIXELS or MAX_FILE_BYTES, or it cannot be read. Any exception in the
            body of the `with` statement is taken for a fault of the image, too.
    """
    try:
        if not stat.S_ISREG((status := file.stat()).st_mode):
            raise BrokenImage("no file, but a folder, a pipe or a device")
        if (size := status.st_size) > MAX_FILE_BYTES:
            raise BrokenImage(f"a file of {size:,} bytes, where {MAX_FILE_BYTES:,} are allowed")
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BrokenImage(f"{opened.width}x{opened.height} pixels, where {MAX_PIXELS:,} are allowed")
            yield opened
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("not a PNG, JPEG, WebP, BMP or TIFF file") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, above MAX_PIXELS
        raise BrokenImage(f"more than the {MAX_PIXELS:,} pixels that are allowed") from error
    except Exception as error:  # Pillow raises almost anything for a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenImage(printable(reason)) from error


def _squared(image: Image.Image, resolution: int) -> np.ndarray:
    """Return the central square of an image, resized to uint8 [resolution, resolution, 3]."""
    image = to_rgb(ImageOps.exif_transpose(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide Pillow's warnings of odd metadata, which is harmless here, and of sizes, which `open_image` limits.

    All threads share Python's filters, so enter this once around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: 16-bit grey is scaled to 8 bits, transparency is laid over white.

    Raises ValueError if the pixels are floating-point numbers, whose range is unknown.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
