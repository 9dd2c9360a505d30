"""Find the image files in a folder by their names. This needs neither PyTorch nor NumPy, which load slowly."""

from pathlib import Path

from imletriton.data import catalogue
from imletriton.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def list_images(folder: str | Path) -> list[Path]:
    """List the image files in a folder and in the folders below it, recognised by their suffix.

    Args:
        folder: The folder to search. Hidden files are left out.

    Returns:
        The paths of the image files, sorted.

    Raises:
        InputError: The folder does not exist, cannot be read or holds no images.
    """
    root = Path(folder).expanduser()
    dataset = catalogue.at(folder)
    if not root.is_dir():
        remedy = dataset.how_to_get if dataset else "give a folder of images, or 'faces'"
        raise InputError(f"data.source {str(folder)!r} is no folder: {remedy}.")
    try:
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        next(root.iterdir(), None)  # raises where the folder may not be read; rglob silently finds nothing there
    except OSError as error:
        raise InputError(f"{root} cannot be read ({error.strerror}): change its permissions.") from error
    if not files:
        remedy = dataset.how_to_get if dataset else "give a folder that does"
        raise InputError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}): {remedy}.")
    return files


def list_training_images(folder: str | Path) -> list[Path]:
    """List the image files of a data set, which must be at least two.

    Args:
        folder: The folder to search, as in `list_images`.

    Returns:
        The paths of the image files, sorted.

    Raises:
        InputError: As in `list_images`, and also where the folder holds one image only.
    """
    files = list_images(folder)
    if len(files) < 2:
        raise InputError(f"{folder} holds one image only ({files[0].name}): give at least two.")
    return files


def holds_images(folder: Path) -> bool:
    """Return whether a folder exists and holds images, directly or in the folders below it."""
    try:
        return bool(list_images(folder))
    except InputError:
        return False
