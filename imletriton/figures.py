"""Pictures people look at."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imletriton.run import write_whole

COLUMNS = 8


def save_samples(path: Path, samples: Tensor, points: Tensor) -> None:
    """Samples as one PNG: images, uint8 [n, 3, H, W], as a grid; points in the plane, [n, 2], over the data points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples.ndim == 4:
        picture = image_grid(samples)
    else:
        from imletriton.plots import samples_over_points  # here, as matplotlib loads slowly

        picture = samples_over_points(samples, points)
    write_whole(path, lambda file: picture.save(file, "PNG"))


def image_grid(images: Tensor) -> Image.Image:
    """Images, uint8 [n, 3, H, W], in rows of eight; small ones are enlarged so that a person can see them."""
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    n, height, width, _ = array.shape
    rows = -(-n // COLUMNS)
    grid = np.full((rows * COLUMNS, height, width, 3), 255, np.uint8)
    grid[:n] = array
    sheet = grid.reshape(rows, COLUMNS, height, width, 3).swapaxes(1, 2).reshape(rows * height, COLUMNS * width, 3)
    zoom = max(1, 128 // width)
    return Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture under a line of text."""
    size = 20
    sheet = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    sheet.paste(picture, (0, 2 * size))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(sheet).text((size // 2, size // 2), title, fill="black", font=font)
    return sheet
