"""The papers' data sets from their sources: resumed downloads, checked archives, folders that appear whole."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooch
import requests

from imletriton.data.catalogue import ADAPTIVE_URL, DATASETS, KNOWN, KnownSet, find, published
from imletriton.data.files import holds_images, list_images
from imletriton.data.unpacking import unpack
from imletriton.errors import InputError

CHUNK = 1 << 14  # bytes; what arrived of the last one is lost when a connection breaks
TIMEOUT = 30  # seconds without a byte
TIMEOUT_SIZE = 5  # seconds, as a user waits for the answer
RETRIES = 2
Progress = Callable[[int, int | None], None]  # bytes done, of how many where the server tells


def get(name: str, root: Path = DATASETS, progress: Progress = lambda done, total: None) -> Path:
    """Fetch a data set of the papers into the folder that its recipe names; that folder.

    Where its pictures are there already, nothing happens. The archive stays in root/.archives, beside its sha256 as it
    was when first unpacked; one put there by hand is taken as well. A download that broke off goes on where it stopped.
    With IMLETRITON_DATASETS_URL set, archives come from below that address.

    Raises InputError for unknown names, sets without an address, sources out of reach, and archives that are damaged,
    unsafe or not what was fetched first.
    """
    known = find(name)
    folder = root / known.folder
    archive, whole = _places(known, root)
    if holds_images(folder):
        return folder
    if not known.archive:
        raise InputError(f"{name} has no address to fetch it from: {known.how_to_get}.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there but holds no images: move it out of the way.")
    try:
        with _alone(archive.parent):
            if not holds_images(whole):
                if not archive.exists():
                    _download(known, archive, progress)
                checksum = archive.with_name(f"{archive.name}.sha256")
                line = f"{pooch.file_hash(str(archive))}  {archive.name}\n"  # as sha256sum writes it
                if checksum.exists() and checksum.read_text() != line:
                    raise InputError(
                        f"{archive} is not what was fetched first, by its sha256: remove it to fetch it again, and "
                        f"{checksum.name} beside it too if the source has a new version."
                    )
                unpack(archive, whole)
                checksum.write_text(line)
            if known.inside:
                _lead_to(folder, whole, known)
    except OSError as error:
        raise InputError(
            f"{root} cannot be written ({error.strerror or error}): make room or mend its rights."
        ) from error
    return folder


def is_downloaded(known: KnownSet, root: Path = DATASETS) -> bool:
    """Whether `get` needs no network: the archive is here, or what it holds."""
    archive, whole = _places(known, root)
    return archive.exists() or holds_images(whole)


def download_size(known: KnownSet) -> int | None:
    """Bytes of a set's archive, None where its server does not tell or is out of reach."""
    try:
        answer = requests.head(
            str(known.url), headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=TIMEOUT_SIZE
        )
    except requests.RequestException:
        return None
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")  # Google Drive's, before the file
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.ok and length.isdigit() and not is_page else None


def listing(root: Path = DATASETS) -> list[dict[str, Any]]:
    """The papers' data sets as `data list --json` prints them."""
    return [
        {
            "name": known.name,
            "title": known.title,
            "images": known.images,
            "about": known.about,
            "resolution": known.resolution,
            "source": known.source,
            "url": known.url,
            "licence": known.licence,
            "folder": str(root / known.folder),
            "here": holds_images(root / known.folder),
            "published": published(known.name),
        }
        for known in KNOWN.values()
    ]


def _places(known: KnownSet, root: Path) -> tuple[Path, Path]:
    """Where a set's archive belongs, and the folder that it is unpacked into."""
    archive = root / ".archives" / (known.archive or "")
    return archive, root / archive.stem if known.inside else root / known.folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder of archives for this process. Raises InputError while another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is fetching into {folder.parent}: wait for it.") from None
        yield


def _download(known: KnownSet, archive: Path, progress: Progress) -> None:
    """Download an archive, which appears whole or not at all. Raises InputError where it cannot be had."""
    from gdown import download as from_google_drive
    from gdown.exceptions import DownloadError

    url, part = str(known.url), archive.with_name(f"{archive.name}.part")

    def resumed(url: str, output: str, _: object) -> None:
        _resume(url, part, progress)
        part.rename(output)

    try:
        if url == ADAPTIVE_URL:
            from_google_drive(
                url, str(archive), quiet=True, resume=True, progress=progress, timeout=TIMEOUT, retries=RETRIES
            )
        else:
            pooch.get_logger().setLevel("WARNING")
            files = {"registry": {archive.name: None}, "urls": {archive.name: url}}
            source = pooch.create(archive.parent, "", **files, retry_if_failed=RETRIES)
            source.fetch(archive.name, downloader=resumed)
    except (requests.RequestException, DownloadError) as error:
        response = getattr(error, "response", None)
        reason = "no connection, or it broke off" if response is None else f"HTTP {response.status_code}"
        if isinstance(error, DownloadError):
            reason = re.split(r"[.:;]\s", f"{error}\n")[0]  # its first sentence
        second = (
            f"; a second source is what the authors of Adaptive IMLE share at {ADAPTIVE_URL}, "
            f"which `imletriton data get ffhq100` unpacks into {DATASETS / 'adaptive-imle'}"
        )
        raise InputError(
            f"{url} cannot be fetched ({reason}): run this again, which goes on where it stopped, "
            f"or put the file at {archive} by hand{'' if known.inside else second}."
        ) from error


def _resume(url: str, part: Path, progress: Progress) -> None:
    """Download the rest of a file, or all of it where the server cannot send a part."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)  # no beginning of this file; the next try starts over
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)


def _lead_to(folder: Path, several: Path, known: KnownSet) -> None:
    """Make folder a link to the set among several. Raises InputError where it is not clear which one it is."""
    named = [p for p in several.rglob("*") if p.is_dir() and str(known.inside) in p.name.lower() and holds_images(p)]
    tops = [p for p in named if not any(q in p.parents for q in named)]
    if len(tops) != 1:
        folders = sorted({str(file.parent) for file in list_images(several)})
        raise InputError(
            f"{several} holds images in {', '.join(folders)}, and which are {known.name} is not clear: "
            "name the right folder, such as `data.source=FOLDER`."
        )
    if folder.is_symlink():  # to what is gone
        folder.unlink()
    elif folder.is_dir():
        folder.rmdir()
    folder.symlink_to(os.path.relpath(tops[0], folder.parent))
