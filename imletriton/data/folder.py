"""Read a folder of images of any size and mode into one array."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from imletriton.data.files import list_training_images
from imletriton.errors import InputError

BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for a broken file


def read_folder(folder: str | Path, resolution: int) -> np.ndarray:
    """Read every image of a folder, cropped to its central square and resized.

    Args:
        folder: The folder of images; the folders below it are read too.
        resolution: The side of the returned images, in pixels.

    Returns:
        uint8 [n, resolution, resolution, 3], in the order of the files' paths.

    Raises:
        InputError: The folder is missing or unreadable, holds fewer than two images, or holds broken files. The
            message names all of the broken files.
    """
    files = list_training_images(folder)
    images, broken = [], []
    for file in files:
        try:
            images.append(read_image(file, resolution))
        except BROKEN as error:
            broken.append(f"{file.relative_to(Path(folder).expanduser())} ({error})")
    if broken:
        raise InputError(
            f"{len(broken)} of {len(files)} images in {folder} cannot be read: {', '.join(broken)}; "
            "repair or remove them."
        )
    return np.stack(images)


def read_image(file: Path, resolution: int) -> np.ndarray:
    """Read one image, rotated as its EXIF data says, cropped to its central square and resized with antialiasing.

    Args:
        file: The path of the image.
        resolution: The side of the returned image, in pixels.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        OSError, ValueError, SyntaxError or Image.DecompressionBombError: The file is broken; see BROKEN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow warns of odd metadata, which does no harm here
        with Image.open(file) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    Args:
        image: The image. 16-bit grey values are scaled to 8 bits, and transparent pixels are laid over white.

    Returns:
        The image in mode RGB.

    Raises:
        ValueError: The pixels are floating-point numbers, whose range is unknown.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
