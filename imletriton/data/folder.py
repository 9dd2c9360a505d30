"""A folder of images of any size and mode as one array."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from imletriton.data.files import list_pictures
from imletriton.errors import InputError

BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what reading a broken file raises


def read_folder(folder: str | Path, resolution: int) -> np.ndarray:
    """Every image of a folder, centre-cropped to a square and resized: uint8 [n, resolution, resolution, 3].

    Raises InputError for a missing, unreadable or empty folder, one image only, or broken files (all are named).
    """
    files = list_pictures(folder)
    pictures, broken = [], []
    for file in files:
        try:
            pictures.append(read_image(file, resolution))
        except BROKEN as error:
            broken.append(f"{file.relative_to(Path(folder).expanduser())} ({error})")
    if broken:
        raise InputError(
            f"{len(broken)} of {len(files)} images in {folder} cannot be read: {', '.join(broken)}; "
            "repair or remove them."
        )
    return np.stack(pictures)


def read_image(file: Path, resolution: int) -> np.ndarray:
    """One image, turned as its EXIF data says, cropped to its central square, resized with antialiasing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata is not the user's concern
        with Image.open(file) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16-bit greys scaled, transparency over white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
