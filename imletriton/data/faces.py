"""Drawn faces with independent attributes: the built-in data set of 100, and any number of others."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

COUNT = 100
SEED = 7
CANVAS = 256  # pixels; faces are drawn at this size and then reduced, which smooths their outlines

SKIN = ["#ffdfc4", "#f0c49c", "#dba678", "#b97d50", "#8c5a36", "#5f3b26"]
HAIR_COLOUR = ["#221c1a", "#54321f", "#9c5a28", "#e2b552", "#b8432f", "#9a9aa6", "#3f4f8f"]
HAIR_STYLE = ["short", "long", "bun", "curly", "fringe", "bald"]
EYES = ["#3b2a1d", "#3c6e9f", "#4d7a46", "closed"]
MOUTH = ["smile", "laugh", "calm", "surprise"]
GLASSES = ["none", "none", "round", "dark"]  # half of the faces wear none
BACKGROUND = ["#a8d5e8", "#f5c9c4", "#cfe6b8", "#f7e3a1", "#d5c6ec", "#f4b978", "#7fb6ad", "#eceae4"]
SHIRT = ["#2f6690", "#c8553d", "#4f772d", "#6d4c8d", "#e0a100", "#444b54"]


def faces(resolution: int, count: int = COUNT, seed: int = SEED) -> np.ndarray:
    """Draw faces, by default the built-in data set: uint8 [count, resolution, resolution, 3]."""
    size, drawn = (resolution, resolution), np.empty((count, resolution, resolution, 3), np.uint8)
    canvases = _built_in() if (count, seed) == (COUNT, SEED) else _canvases(count, seed)
    for row, canvas in zip(drawn, canvases, strict=True):
        row[:] = np.asarray(canvas.resize(size, Image.Resampling.LANCZOS))
    return drawn


@cache
def _built_in() -> list[Image.Image]:
    """Draw the built-in data set, once, as it takes most of a second."""
    return list(_canvases(COUNT, SEED))


def _canvases(count: int, seed: int) -> Iterator[Image.Image]:
    rng = np.random.default_rng(seed)

    def evenly(values: list[str]) -> list[str]:
        """Return a value for each face in random order, all about equally often."""
        return [values[i] for i in rng.permutation(np.resize(np.arange(len(values)), count))]

    attributes = zip(
        *map(evenly, (SKIN, HAIR_COLOUR, HAIR_STYLE, EYES, MOUTH, GLASSES, BACKGROUND, SHIRT)), strict=True
    )
    for skin, hair, style, eyes, mouth, glasses, background, shirt in attributes:
        image = Image.new("RGB", (CANVAS, CANVAS), background)
        _draw(ImageDraw.Draw(image), skin, hair, style, eyes, mouth, glasses, shirt)
        tilt, shift, zoom = rng.uniform(-12, 12), rng.uniform(-16, 16), rng.uniform(0.9, 1.06)
        yield _pose(image, tilt, shift, zoom, background)


def _pose(image: Image.Image, tilt: float, shift: float, zoom: float, background: str) -> Image.Image:
    """Rotate the head about the neck by tilt (degrees), shift it sideways (canvas pixels) and zoom."""
    angle, x0, y0 = np.deg2rad(tilt), CANVAS / 2, CANVAS * 0.85
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrix = (c, s, x0 - c * (x0 + shift) - s * y0, -s, c, y0 + s * (x0 + shift) - c * y0)
    size = (CANVAS, CANVAS)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=background)


def _shade(colour: str, factor: float) -> str:
    """Return a colour made darker (factor below 1) or lighter (factor above 1)."""
    red, green, blue = (min(255, int(int(colour[i : i + 2], 16) * factor)) for i in (1, 3, 5))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _oval(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: str) -> None:
    """Draw an ellipse with centre (x, y) and radii rx and ry."""
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _draw(
    draw: ImageDraw.ImageDraw,
    skin: str,
    hair: str,
    style: str,
    eyes: str,
    mouth: str,
    glasses: str,
    shirt: str,
) -> None:
    """Draw one upright, centred face on the canvas, from back to front."""
    shadow = _shade(skin, 0.84)
    if style == "long":
        draw.rounded_rectangle((52, 40, 204, 232), 70, fill=hair)
    elif style == "curly":
        curls = [(66, 90), (72, 58), (98, 36), (128, 28), (158, 36), (184, 58), (190, 90), (62, 124), (194, 124)]
        for x, y in curls:
            _oval(draw, x, y, 30, 30, hair)
    elif style == "bun":
        _oval(draw, 128, 30, 30, 27, hair)
    draw.rounded_rectangle((36, 222, 220, 420), 48, fill=shirt)
    draw.rounded_rectangle((104, 180, 152, 240), 20, fill=shadow)
    _oval(draw, 62, 134, 13, 18, shadow)
    _oval(draw, 194, 134, 13, 18, shadow)
    _oval(draw, 128, 130, 66, 80, skin)
    _hair_front(draw, hair, style)
    _oval(draw, 82, 160, 15, 10, _shade(skin, 0.92))
    _oval(draw, 174, 160, 15, 10, _shade(skin, 0.92))
    draw.polygon([(128, 126), (118, 156), (136, 156)], fill=shadow)
    brow = _shade(hair, 0.8)
    for x in (100, 156):
        draw.rounded_rectangle((x - 17, 98, x + 17, 105), 3, fill=brow)
        _eye(draw, x, 124, eyes)
    _mouth(draw, mouth)
    _glasses(draw, glasses)


def _hair_front(draw: ImageDraw.ImageDraw, hair: str, style: str) -> None:
    """Draw the hair that lies in front of the face."""
    if style in ("short", "long", "bun", "curly"):
        draw.chord((58, 44, 198, 200), 196, 344, fill=hair)
    if style == "fringe":
        draw.pieslice((56, 42, 200, 210), 180, 360, fill=hair)
        draw.rectangle((72, 110, 184, 128), fill=hair)
        draw.rounded_rectangle((54, 112, 76, 176), 9, fill=hair)
        draw.rounded_rectangle((180, 112, 202, 176), 9, fill=hair)
    if style == "short":
        draw.rounded_rectangle((58, 92, 74, 136), 7, fill=hair)
        draw.rounded_rectangle((182, 92, 198, 136), 7, fill=hair)


def _eye(draw: ImageDraw.ImageDraw, x: float, y: float, eyes: str) -> None:
    """Draw one eye with centre (x, y), closed or with an iris of the given colour."""
    if eyes == "closed":
        draw.arc((x - 14, y - 8, x + 14, y + 16), 190, 350, fill="#2a211c", width=6)
        return
    _oval(draw, x, y, 15, 11, "#ffffff")
    _oval(draw, x, y, 9, 10, eyes)
    _oval(draw, x, y, 4, 5, "#111111")
    _oval(draw, x + 3, y - 4, 2.5, 2.5, "#ffffff")


def _mouth(draw: ImageDraw.ImageDraw, mouth: str) -> None:
    """Draw the mouth."""
    if mouth == "smile":
        draw.arc((98, 154, 158, 192), 20, 160, fill="#9c3434", width=8)
    elif mouth == "laugh":
        draw.chord((98, 154, 158, 202), 0, 180, fill="#7d2330")
        draw.chord((104, 168, 152, 188), 180, 360, fill="#ffffff")
    elif mouth == "calm":
        draw.rounded_rectangle((106, 177, 150, 185), 4, fill="#9c4a44")
    else:
        _oval(draw, 128, 182, 13, 16, "#7d2330")


def _glasses(draw: ImageDraw.ImageDraw, glasses: str) -> None:
    """Draw the glasses, where the face wears any."""
    if glasses == "none":
        return
    for x in (100, 156):
        box = (x - 25, 102, x + 25, 148)
        if glasses == "dark":
            draw.rounded_rectangle(box, 14, fill="#20242b")
        else:
            draw.ellipse(box, outline="#7a2f1d", width=6)
    draw.line((122, 120, 134, 120), fill="#20242b" if glasses == "dark" else "#7a2f1d", width=6)
