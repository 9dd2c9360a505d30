"""A cache on disk for what takes long to compute: decoded pictures, and the features that metrics compare.

Files are named after the content of the pictures, so they are never out of date. Each is an .npy file followed by the
SHA-256 of the array. The most recently used files of a folder are kept, up to MAX_BYTES.
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

FORMAT = 1  # version of how pictures are cropped and resized
MAX_BYTES = 8 << 30  # of all files in a folder together: 40,000 pictures at 256x256
DIGEST = hashlib.sha256().digest_size


class DamagedError(Exception):
    """A file of the cache is damaged."""


def folder(name: str) -> Path:
    """Return a folder of the cache, which need not exist."""
    import pooch

    return Path(pooch.os_cache("imletriton")) / name


def place(pictures: Iterable[Path], resolution: int, threads: int) -> Path | None:
    """Return the cache's file for pictures decoded at this resolution, or None if a picture cannot be read.

    The content of all pictures is read, as many files at once as there are threads. The file need not exist.
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
        raise OSError  # reported when the pictures are decoded
    with picture.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load(file: Path, shape: tuple[int | None, ...], dtype: type[np.generic]) -> np.ndarray | None:
    """Return the array of a file, mapped into memory; None if the file does not exist.

    Args:
        file: The file.
        shape: The shape that it must have, where None stands for any number.
        dtype: The dtype that it must have.

    Raises:
        DamagedError: The file is damaged; it has been removed.
    """
    if not file.exists():
        return None
    with contextlib.suppress(Exception):  # NumPy raises almost anything for a damaged header
        array: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
        with file.open("rb") as opened:
            opened.seek(-DIGEST, os.SEEK_END)
            digest = opened.read()
        fits = len(array.shape) == len(shape) and all(a in (b, None) for a, b in zip(shape, array.shape, strict=True))
        if fits and array.dtype == np.dtype(dtype) and _sha256(array) == digest:
            with contextlib.suppress(OSError):
                os.utime(file)  # mark it as used
            return array
    with contextlib.suppress(OSError):
        file.unlink()
    raise DamagedError


def save(file: Path, array: np.ndarray) -> None:
    """Write a contiguous array to a file, whole or not at all, and remove the least recently used ones beside it.

    If that fails, say because the disk is full, nothing is cached.
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
