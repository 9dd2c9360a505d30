"""Unpack archives from the web safely: no file is written outside the folder, and the size is limited."""

import contextlib
import errno
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple, Self

from imletriton.data.files import holds_images
from imletriton.errors import InputError

MAX_BYTES = 4 << 30  # of all unpacked files together
MAX_FILES = 100_000  # and folders
MAX_HEADER = 1 << 16  # bytes of a header of a tar archive, which tarfile reads in one piece
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_NAME, MAX_PATH = 255, 1024  # bytes of a file's or folder's name, and of a whole path in an archive


class Entry(NamedTuple):
    """One file in an archive; `open` returns its unpacked content."""

    name: str
    size: int  # bytes; the unpacked content is never longer than this
    is_folder: bool
    regular: bool  # False for links, devices and encrypted files
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a new folder, which appears whole or not at all.

    If everything in the archive is in one folder, that folder's content is unpacked.

    Raises:
        InputError: The archive is damaged, holds no images, holds links, devices, encrypted files, a name twice or
            names that are too long or lead out of the folder, or declares more than MAX_BYTES or MAX_FILES; then
            nothing is written.
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
    except InputError:
        raise
    except Exception as error:  # zipfile and tarfile raise almost anything for a damaged archive
        # The operating system reports faults of the disk, except for EINVAL: a place in the archive that is impossible.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise InputError(f"{archive} is damaged or not an archive ({error}): remove it and fetch it again.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack_files(archive: Path, folder: Path) -> None:
    """Unpack all files of an archive into an existing folder, unless one is not safe (InputError)."""
    with _opened(archive) as entries:
        files = _checked(archive, entries)
        for parts, entry in files.items():
            target = folder.joinpath(*parts)
            source = entry.open()
            assert source is not None  # it is a regular file
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file)


def _checked(archive: Path, entries: Iterable[Entry]) -> dict[tuple[str, ...], Entry]:
    """Return the entries to unpack by their paths. Raises InputError if one is not safe."""
    files: dict[tuple[str, ...], Entry] = {}
    folders: set[tuple[str, ...]] = set()
    size = 0
    for count, entry in enumerate(entries, 1):
        path = PureWindowsPath(entry.name)  # also recognises drive letters and backslashes
        parts = path.parts
        size += entry.size
        above = [parts[:k] for k in range(1, len(parts))]
        lengths = [len(os.fsencode(part)) for part in parts]
        if count > MAX_FILES or size > MAX_BYTES or entry.size < 0:
            fault = f"exceeds the limit of {MAX_FILES:,} files or {MAX_BYTES >> 30} GiB"
        elif entry.is_folder or parts[:1] == ("__MACOSX",):
            continue  # folders are made for the files in them
        elif path.anchor or ".." in parts or not parts or "\0" in entry.name:
            fault = "leads out of its folder"
        elif max(lengths) > MAX_NAME or sum(lengths) + len(lengths) > MAX_PATH:
            fault = "has a name that is too long"
        elif not entry.regular:
            fault = "is a link, a device or encrypted"
        elif parts in files:
            fault = "occurs twice"
        elif parts in folders or any(folder in files for folder in above):
            fault = "has the name of a folder, or a file has the name of its folder"
        else:
            files[parts] = entry
            folders.update(above)
            continue
        raise InputError(f"{archive} is not safe, because its entry {entry.name[:MAX_NAME]!r} {fault}: remove it.")
    return files


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Iterator[Entry]]:
    """Open an archive for its entries."""
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(archive, tarinfo=_Member))
        except tarfile.ReadError:
            yield _zip_entries(stack.enter_context(zipfile.ZipFile(archive)))
        else:
            yield (
                Entry(member.name, member.size, member.isdir(), member.isreg(), partial(tar.extractfile, member))
                for member in tar
            )


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for info in archive.infolist():
        name = info.orig_filename  # zipfile cuts info.filename off at a NUL character
        kind = stat.S_IFMT(info.external_attr >> 16)
        regular = kind in (0, stat.S_IFREG) and not info.flag_bits & 1  # bit 0 marks an encrypted file
        yield Entry(name, info.file_size, name.endswith("/"), regular, partial(archive.open, info))


class _Member(tarfile.TarInfo):
    """An entry of a tar archive, with headers of at most MAX_HEADER."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in HEADERS and member.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member
