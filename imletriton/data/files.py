"""The image files in a folder, found by their names: needs neither PyTorch nor NumPy, which load slowly."""

from pathlib import Path

from imletriton.data import catalogue
from imletriton.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def list_images(folder: str | Path) -> list[Path]:
    """The image files in a folder and below it, by their suffix, in the order of their names."""
    root = Path(folder).expanduser()
    known = catalogue.at(folder)
    if not root.is_dir():
        mend = known.how_to_get if known else "give a folder of images, or 'faces'"
        raise InputError(f"data.source {str(folder)!r} is no folder: {mend}.")
    try:
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        next(root.iterdir(), None)  # rglob passes over a folder it may not read
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}.") from error
    if not found:
        mend = known.how_to_get if known else "give a folder that does"
        raise InputError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}): {mend}.")
    return found


def list_pictures(folder: str | Path) -> list[Path]:
    """The image files to train on or to compare with. Raises InputError where there are fewer than two."""
    files = list_images(folder)
    if len(files) < 2:
        raise InputError(f"{folder} holds one image only ({files[0].name}): give at least two.")
    return files


def holds_images(folder: Path) -> bool:
    """Whether a folder is there and has images in it or below."""
    try:
        return bool(list_images(folder))
    except InputError:
        return False
