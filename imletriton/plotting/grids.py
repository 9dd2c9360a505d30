"""Sheets of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from imletriton.runs.run import write_whole

if TYPE_CHECKING:
    from imletriton.generator import Generator

COLUMNS = 8
WIDTH = 1024  # pixels: small images are enlarged to sheets of at most this width


def sample_sheet(generator: "Generator", n: int | None = None, seed: int = 0) -> Tensor:
    """The samples on a run's sheets, uint8 [n, 3, H, W] or float32 [n, 2]: 64, 32 large ones, or 1000 points."""
    if n is None:
        n = 1000 if len(generator.shape) == 1 else 64 if generator.shape[-1] <= 128 else 32
    return generator.sample(n, seed)


def save_samples(path: Path, samples: Tensor, points: Tensor) -> None:
    """Save a sheet of samples: a grid of uint8 [n, 3, H, W], or points in the plane [n, 2] over the data points."""
    if samples.ndim == 4:
        save_picture(path, image_grid(samples))
    else:
        from imletriton.plotting.charts import samples_over_points  # here, as matplotlib loads slowly

        save_picture(path, samples_over_points(samples, points))


def save_picture(path: Path, picture: Image.Image, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a PNG file, whole or not at all, with texts in its metadata, and create its folder."""
    metadata = PngInfo()
    for keyword, text in texts.items():
        metadata.add_text(keyword, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: picture.save(file, "PNG", pnginfo=metadata))


def image_grid(images: Tensor, columns: int = COLUMNS, at_most: int = WIDTH) -> Image.Image:
    """Lay out images, uint8 [n, 3, H, W], in rows. Small ones are enlarged, to a sheet `at_most` pixels wide."""
    n, _, _, width = images.shape
    white = torch.full((-n % columns, *images.shape[1:]), 255, dtype=torch.uint8)
    grid = torch.cat([images.cpu(), white])
    sheet = rearrange(grid, "(row column) c h w -> (row h) (column w) c", column=columns).numpy()
    zoom = max(1, at_most // (columns * width))
    return Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST)


def image_pairs(left: Tensor, right: Tensor) -> Image.Image:
    """Lay out pairs of images, both uint8 [n, 3, H, W], in rows of four pairs, or of eight if there are many."""
    gap = torch.full((*left.shape[:3], max(1, left.shape[3] // 8)), 255, dtype=torch.uint8)
    pairs = torch.cat([left, right, gap], 3)
    if len(pairs) <= 100:
        return image_grid(pairs, columns=4)
    sheet = image_grid(pairs, columns=8)
    sheet.thumbnail((2 * WIDTH, sheet.height))
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below each other, on white."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def titled(picture: Image.Image, title: str) -> Image.Image:
    """Put a line of text above a picture."""
    size = max(20, picture.width // 60)
    font = ImageFont.load_default(size)
    width = max(picture.width, int(font.getlength(title)) + size)
    sheet = Image.new("RGB", (width, picture.height + 2 * size), "white")
    sheet.paste(picture, (0, 2 * size))
    ImageDraw.Draw(sheet).text((size // 2, size // 2), title, fill="black", font=font)
    return sheet
