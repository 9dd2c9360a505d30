"""Find the image files in a folder by their names. Needs neither PyTorch nor NumPy, which load slowly."""

import os
from collections import Counter
from pathlib import Path

from imletriton.data import catalogue
from imletriton.errors import InputError, printable

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MAX_FILE_BYTES = 1 << 30  # more than 120 million pixels of four 16-bit channels; larger files are not read


def list_images(folder: str | Path) -> list[Path]:
    """Return the sorted paths of the image files in a folder and below it, recognised by their suffix.

    `skipped` describes what is left out. Raises InputError if the folder does not exist, cannot be read or holds no
    images.
    """
    files, others = _search(folder)
    if not files:
        dataset = catalogue.at(folder)
        remedy = dataset.how_to_get if dataset else "give a folder that does"
        but = f", but {_enumerate(others)}" if others else ""
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}){but}: {remedy}.")
    return sorted(files)


def skipped(folder: str | Path) -> str:
    """Return a sentence on what `list_images` leaves out in a folder; an empty one if it leaves nothing out."""
    _, others = _search(folder)
    return f"Not taken for pictures in {printable(str(folder))}: {_enumerate(others)}." if others else ""


def list_training_images(folder: str | Path) -> list[Path]:
    """Return `list_images` of a folder; raises InputError if it holds one image only."""
    files = list_images(folder)
    if len(files) < 2:
        raise InputError(f"{folder} holds one image only ({files[0].name}): give at least two.")
    return files


def holds_images(folder: Path) -> bool:
    """Return whether a folder exists and holds images, there or below it."""
    try:
        return bool(list_images(folder))
    except InputError:
        return False


def _search(folder: str | Path) -> tuple[list[Path], Counter[str]]:
    """Return the image files in a folder and below it, in any order, and counts of what else is there, by kind."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): change its permissions.") from error

    files: list[Path] = []
    others: Counter[str] = Counter()
    if not _is_folder(folder):
        dataset = catalogue.at(folder)
        remedy = dataset.how_to_get if dataset else "give a folder of images, or 'faces'"
        raise InputError(f"data.source {str(folder)!r} is not a folder: {remedy}.")
    for parent, folders, names in os.walk(Path(folder).expanduser(), onerror=refuse):
        try:
            others["symbolic links to folders"] += sum((Path(parent) / name).is_symlink() for name in folders)
            for file in (Path(parent) / name for name in names):
                suffix = file.suffix.lower()
                if file.name.startswith("."):
                    others["hidden pictures"] += suffix in SUFFIXES
                elif suffix not in SUFFIXES:
                    others[f"{suffix} files" if suffix else "files without a suffix"] += 1
                elif file.exists() and not file.is_file():  # a link that leads nowhere counts as a broken picture
                    others["pipes, devices or sockets"] += 1
                else:
                    files.append(file)
        except OSError as error:
            refuse(error)
    return files, +others


def _is_folder(path: str | Path) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError):  # not a possible name, or it begins with ~ and an unknown user
        return False


def _enumerate(counts: Counter[str], most: int = 6) -> str:
    """Write counts as a list, the greatest first; all after the first few are added up."""
    parts = [f"{printable(kind)} ({count})" for kind, count in counts.most_common(most)]
    if more := counts.total() - sum(count for _, count in counts.most_common(most)):
        parts.append(f"other files ({more})")
    return ", ".join(parts)
