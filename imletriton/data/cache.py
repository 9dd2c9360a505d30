"""Keep what took long to compute of pictures in the user's cache folder, so that the next time need not wait.

That is decoded pictures, in the folder "pictures", and their features, in the folder "features". A file is named after
the content of the pictures, so a changed picture is never taken from it. It is an .npy file followed by the SHA-256 of
the array. Of the files in a folder, those used last are kept, up to MAX_BYTES.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from imletriton.data.files import MAX_FILE_BYTES
from imletriton.runs.run import write_whole

FORMAT = 1  # raise it when pictures are cropped or resized in another way
MAX_BYTES = 8 << 30  # of all files in a folder together: 40,000 pictures at 256x256
DIGEST = hashlib.sha256().digest_size


class DamagedError(Exception):
    """A file of the cache does not hold what was written to it."""


def folder(name: str) -> Path:
    """Return the cache's folder of this name, which need not exist."""
    import pooch

    return Path(pooch.os_cache("imletriton")) / name


def place(pictures: Iterable[Path], resolution: int, threads: int) -> Path | None:
    """Return the file for decoded pictures, which need not exist.

    Args:
        pictures: The files of the pictures; all of their content is read.
        resolution: The side to which they are resized, in pixels.
        threads: How many files to read at once.

    Returns:
        The path; None where a picture cannot be read.
    """
    key = hashlib.sha256(f"{FORMAT} {PIL.__version__} {resolution}".encode())
    try:
        with ThreadPoolExecutor(threads) as pool:
            for digest in pool.map(_digest, pictures):
                key.update(digest)
    except OSError:
        return None
    return folder("pictures") / f"{key.hexdigest()[:32]}.npy"


def _digest(picture: Path) -> bytes:
    if picture.stat().st_size > MAX_FILE_BYTES:
        raise OSError  # which is told when the pictures are decoded
    with picture.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load(file: Path, shape: tuple[int | None, ...], dtype: type[np.generic]) -> np.ndarray | None:
    """Return the array of a file, mapped into memory; None where the file does not exist.

    Args:
        file: The file.
        shape: The shape that it must have; None stands for any number.
        dtype: The type that its values must have.

    Raises:
        DamagedError: The file is damaged; it has been removed.
    """
    if not file.exists():
        return None
    with contextlib.suppress(Exception):  # NumPy raises nearly anything where the header is damaged
        array: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
        with file.open("rb") as opened:
            opened.seek(-DIGEST, os.SEEK_END)
            digest = opened.read()
        fits = len(array.shape) == len(shape) and all(a in (b, None) for a, b in zip(shape, array.shape, strict=True))
        if fits and array.dtype == np.dtype(dtype) and _sha256(array) == digest:
            with contextlib.suppress(OSError):
                os.utime(file)  # it was used just now
            return array
    with contextlib.suppress(OSError):
        file.unlink()
    raise DamagedError


def save(file: Path, array: np.ndarray) -> None:
    """Write an array to a file, whole or not at all, and remove what was used least recently beside it.

    Nothing is written where the disk is full, for example, or where it is larger than MAX_BYTES: that costs time only.

    Args:
        file: The file.
        array: Any array that is contiguous.
    """

    def write(path: Path) -> None:
        with path.open("wb") as opened:
            np.save(opened, array, allow_pickle=False)
            opened.write(_sha256(array))

    if array.nbytes > MAX_BYTES:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the pictures may be private
        others = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in file.parent.iterdir())
        excess = sum(size for _, size, _ in others) + array.nbytes - MAX_BYTES
        for _, size, path in others:
            if excess > 0:
                path.unlink(missing_ok=True)
                excess -= size
        write_whole(file, write)


def _sha256(array: np.ndarray) -> bytes:
    return hashlib.sha256(array.data).digest()
