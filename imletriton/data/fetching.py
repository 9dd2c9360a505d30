"""Download the papers' data sets: downloads resume, archives are verified, folders appear whole or not at all."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3

from imletriton.data.catalogue import ADAPTIVE_URL, DATASETS, KNOWN, KnownSet, find, published
from imletriton.data.files import holds_images, list_images
from imletriton.data.unpacking import MAX_BYTES, unpack
from imletriton.errors import InputError
from imletriton.runs.run import write_whole

CHUNK = 1 << 14  # bytes written at once; a broken connection loses an incomplete chunk
TIMEOUT = 30  # seconds to wait for the next byte
TIMEOUT_SIZE = 5  # seconds to wait for the size of an archive, while the user waits too
RETRIES = 2
# What requests raises for a server or an address that does not work; some exceptions of urllib3, and ValueErrors of
# urllib, get through.
UNREACHABLE = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
Progress = Callable[[int, int | None], None]  # called with the bytes received, and their total if it is known


def get(name: str, root: Path = DATASETS, progress: Progress = lambda done, total: None) -> Path:
    """Download a data set of the papers into the folder that its recipe names, unless that holds images already.

    The archive stays in root/.archives, beside a file with the SHA-256 that it had when it was first unpacked; an
    archive that the user has put there is used. An interrupted download continues where it stopped. The environment
    variable IMLETRITON_DATASETS_URL names a mirror.

    Args:
        name: The name of the data set, a key of KNOWN.
        root: The folder for all data sets.
        progress: See `Progress`.

    Returns:
        The folder with the images.

    Raises:
        InputError: The name is unknown, the data set has no archive, the archive cannot be downloaded, is damaged or
            unsafe or differs from the one that was first unpacked, or the folder cannot be written.
    """
    dataset = find(name)
    folder = root / dataset.folder
    archive, unpacked = _archive_paths(dataset, root)
    if holds_images(folder):
        return folder
    if not dataset.archive:
        raise InputError(f"{name} has no address to fetch it from: {dataset.how_to_get}.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there but holds no images: move it away, so that the images can take its place.")
    try:
        with _locked(archive.parent):
            if not holds_images(unpacked):
                if not archive.exists():
                    _download(dataset, archive, progress)
                checksum = archive.with_name(f"{archive.name}.sha256")
                line = f"{pooch.file_hash(str(archive))}  {archive.name}\n".encode()  # the format of sha256sum
                if checksum.exists() and checksum.read_bytes() != line:
                    raise InputError(
                        f"{archive} is not what was fetched first (its SHA-256 differs): remove it to fetch it again, "
                        f"and remove {checksum.name} beside it too if the source has a new version."
                    )
                unpack(archive, unpacked)
                write_whole(checksum, lambda file: file.write_bytes(line))
            if dataset.inside:
                _link_to_set(folder, unpacked, dataset)
    except OSError as error:
        raise InputError(
            f"{error.filename or root} cannot be written ({error.strerror or error}): "
            "make room, change its permissions, or move away what is there."
        ) from error
    return folder


def is_downloaded(dataset: KnownSet, root: Path = DATASETS) -> bool:
    """Return whether `get` needs no network, as the archive or its images are on disk already."""
    archive, unpacked = _archive_paths(dataset, root)
    return archive.exists() or holds_images(unpacked)


def download_size(dataset: KnownSet) -> int | None:
    """Return the size of a data set's archive in bytes, or None if the server does not send it."""
    try:
        response = requests.head(
            str(dataset.url), headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=TIMEOUT_SIZE
        )
    except UNREACHABLE:
        return None
    is_page = response.headers.get("Content-Type", "").startswith("text/html")  # Google Drive shows a page first
    return _length(response) if response.ok and not is_page else None


def _length(response: requests.Response) -> int | None:
    """Return the Content-Length of a response in bytes, or None if it is not a number."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def listing(root: Path = DATASETS) -> list[dict[str, Any]]:
    """Return the papers' data sets as `imletriton data list --json` prints them."""
    keys = ("name", "title", "images", "about", "resolution", "source", "url", "licence")
    return [
        {key: getattr(dataset, key) for key in keys}
        | {"folder": str(root / dataset.folder), "here": holds_images(root / dataset.folder)}
        | {"published": published(dataset.name)}
        for dataset in KNOWN.values()
    ]


def _archive_paths(dataset: KnownSet, root: Path) -> tuple[Path, Path]:
    """Return the paths of a data set's archive and of the folder that it is unpacked into."""
    archive = root / ".archives" / (dataset.archive or "")
    return archive, root / archive.stem if dataset.inside else root / dataset.folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder of archives for this process. Raises InputError if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is fetching into {folder.parent}: wait until it has finished.") from None
        yield


def _download(dataset: KnownSet, archive: Path, progress: Progress) -> None:
    """Download an archive, which appears whole or not at all. Raises InputError if that fails."""
    from gdown import download as download_from_google_drive
    from gdown.exceptions import DownloadError

    url, part = str(dataset.url), archive.with_name(f"{archive.name}.part")

    def resuming_downloader(url: str, output: str, _: object) -> None:
        _resume(url, part, progress)
        part.rename(output)

    try:
        if url == ADAPTIVE_URL:
            download_from_google_drive(
                url, str(archive), quiet=True, resume=True, progress=progress, timeout=TIMEOUT, retries=RETRIES
            )
        else:
            pooch.get_logger().setLevel("WARNING")
            files = {"registry": {archive.name: None}, "urls": {archive.name: url}}
            source = pooch.create(archive.parent, "", **files, retry_if_failed=RETRIES)
            source.fetch(archive.name, downloader=resuming_downloader)
    except (*UNREACHABLE, DownloadError) as error:
        response = getattr(error, "response", None)
        reason = "no connection, or it broke off" if response is None else f"HTTP {response.status_code}"
        if isinstance(error, _WrongAnswerError):
            reason = str(error)
        if isinstance(error, DownloadError):
            reason = re.split(r"[.:;]\s", f"{error}\n")[0]  # the first sentence of gdown's long message
        second_source = (
            f"; a second source is what the authors of Adaptive IMLE share at {ADAPTIVE_URL}, "
            f"which `imletriton data get ffhq100` unpacks into {DATASETS / 'adaptive-imle'}"
        )
        raise InputError(
            f"{url} cannot be fetched ({reason}): run the same command again, which continues where it stopped, "
            f"or put the file at {archive} by hand{'' if dataset.inside else second_source}."
        ) from error


class _WrongAnswerError(requests.RequestException):
    """A server has not sent what it was asked for."""


def _resume(url: str, part: Path, progress: Progress) -> None:
    """Download the rest of a partly downloaded file, or all of it if the server cannot send parts."""
    received = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={received}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)  # it is from another file, so the next attempt starts from zero
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            received = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
            part.unlink(missing_ok=True)
            raise _WrongAnswerError("the server sends another part of the file than it was asked for")
        length = _length(response)
        total = None if length is None else received + length
        with part.open("ab" if received else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                received += len(chunk)
                if max(received, total or 0) > MAX_BYTES:
                    part.unlink()
                    raise _WrongAnswerError(f"it has more than {MAX_BYTES >> 30} GiB")
                progress(received, total)


def _link_to_set(folder: Path, unpacked: Path, dataset: KnownSet) -> None:
    """Make a data set's folder a symlink to its images in an unpacked archive of several data sets.

    Raises InputError if it is not clear which of the archive's folders that is.
    """
    named = [p for p in unpacked.rglob("*") if p.is_dir() and str(dataset.inside) in p.name.lower() and holds_images(p)]
    outermost = [p for p in named if not any(q in p.parents for q in named)]
    if len(outermost) != 1:
        folders = sorted({str(file.parent) for file in list_images(unpacked)})
        raise InputError(
            f"{unpacked} holds images in {', '.join(folders)}, and which are {dataset.name} is not clear: "
            "name the right folder, such as `data.source=FOLDER`."
        )
    if folder.is_symlink():  # its target no longer exists
        folder.unlink()
    elif folder.is_dir():
        folder.rmdir()
    folder.symlink_to(os.path.relpath(outermost[0], folder.parent))
