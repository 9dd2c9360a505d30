"""Archives from the web as folders: nothing leaves the folder, nothing grows without bound, nothing appears by half."""

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

MAX_BYTES = 4 << 30
MAX_FILES = 100_000


class Entry(NamedTuple):
    name: str
    size: int  # bytes; no more are unpacked
    regular: bool  # neither a link nor a device nor encrypted
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive's files as a folder, which appears whole or not at all.

    One folder around everything is left out. Raises InputError for an archive that is damaged, holds no images, or
    holds links, encrypted files, one name twice, names that lead out of the folder or more than MAX_BYTES or MAX_FILES;
    OSError where the folder cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _unpack_files(archive, unfinished)
        if not holds_images(unfinished):
            raise InputError(f"{archive} holds no images: remove it and fetch it again.")
        tops = list(unfinished.iterdir())
        (tops[0] if len(tops) == 1 and tops[0].is_dir() else unfinished).rename(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the archive's
            raise
        raise InputError(f"{archive} is damaged or no archive ({error}): remove it and fetch it again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack_files(archive: Path, folder: Path) -> None:
    size = 0
    for count, entry in enumerate(_entries(archive), 1):
        path = PureWindowsPath(entry.name)  # which knows drives and both kinds of slashes
        if path.parts[:1] == ("__MACOSX",):
            continue
        target = folder.joinpath(*path.parts)
        size += entry.size
        if path.anchor or ".." in path.parts or not path.parts or "\0" in entry.name:
            fault = "leads out of its folder"
        elif not entry.regular:
            fault = "is a link, a device or encrypted"
        elif target.exists():
            fault = "comes twice"
        elif count > MAX_FILES or size > MAX_BYTES:
            fault = f"is beyond {MAX_FILES:,} files or {MAX_BYTES >> 30} GiB"
        elif (source := entry.open()) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
            continue
        raise InputError(f"{archive} is refused, as its entry {entry.name!r} {fault}: remove it, and do not trust it.")


def _entries(archive: Path) -> Iterator[Entry]:
    """An archive's entries but for folders."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.isdir():
                    yield Entry(member.name, member.size, member.isreg(), partial(tar.extractfile, member))
        return
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.orig_filename  # zipfile cuts names at NUL
            kind = stat.S_IFMT(info.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG) and not info.flag_bits & 1  # bit 0: encrypted
            if not name.endswith("/"):
                yield Entry(name, info.file_size, regular, partial(opened.open, info))
