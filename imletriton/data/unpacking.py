"""Unpack archives from the web safely: no file lands outside the folder, and the size is limited."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from imletriton.data.files import holds_images
from imletriton.errors import InputError

MAX_BYTES = 4 << 30  # of all unpacked files together
MAX_FILES = 100_000


class Entry(NamedTuple):
    """One file in an archive; `open` returns its unpacked content."""

    name: str
    size: int  # bytes; the unpacked content is never longer than this
    regular: bool  # False for links, devices and encrypted files
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a folder, which appears complete or not at all.

    Where everything in the archive lies in one folder, the content of that folder is unpacked.

    Args:
        archive: The path of the archive.
        folder: The path of the folder to create.

    Raises:
        InputError: The archive is damaged, holds no images, holds links, devices, encrypted files, a name twice or
            names that lead out of the folder, or exceeds MAX_BYTES or MAX_FILES.
        OSError: The folder cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _unpack_files(archive, unfinished)
        if not holds_images(unfinished):
            raise InputError(f"{archive} holds no images: remove it and fetch it again.")
        top_level = list(unfinished.iterdir())
        (top_level[0] if len(top_level) == 1 and top_level[0].is_dir() else unfinished).rename(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the operating system reports it, so the disk is at fault
            raise
        raise InputError(f"{archive} is damaged or not an archive ({error}): remove it and fetch it again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack_files(archive: Path, folder: Path) -> None:
    """Unpack all files of an archive into an existing folder. Raises InputError at the first file that is not safe."""
    size = 0
    for count, entry in enumerate(_entries(archive), 1):
        path = PureWindowsPath(entry.name)  # also recognises drive letters and backslashes
        if path.parts[:1] == ("__MACOSX",):
            continue
        target = folder.joinpath(*path.parts)
        size += entry.size
        if path.anchor or ".." in path.parts or not path.parts or "\0" in entry.name:
            fault = "leads out of its folder"
        elif not entry.regular:
            fault = "is a link, a device or encrypted"
        elif target.exists():
            fault = "occurs twice"
        elif count > MAX_FILES or size > MAX_BYTES:
            fault = f"exceeds the limit of {MAX_FILES:,} files or {MAX_BYTES >> 30} GiB"
        elif (source := entry.open()) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
            continue
        raise InputError(f"{archive} is not safe, because its entry {entry.name!r} {fault}: remove it.")


def _entries(archive: Path) -> Iterator[Entry]:
    """Yield the entries of an archive that are not folders."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.isdir():
                    yield Entry(member.name, member.size, member.isreg(), partial(tar.extractfile, member))
        return
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.orig_filename  # zipfile cuts info.filename off at a NUL character
            kind = stat.S_IFMT(info.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG) and not info.flag_bits & 1  # bit 0 marks an encrypted file
            if not name.endswith("/"):
                yield Entry(name, info.file_size, regular, partial(opened.open, info))
