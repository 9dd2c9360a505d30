"""The sheets of samples."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.quality.methods import BASE, BEST, METHODS
from imletriton.plotting.grids import image_grid, titled


def sheets(
    folder: Path, resolution: int, budget: str, seed: int = 0, count: int = 64, columns: int = 8
) -> dict[str, Image.Image]:
    """A sheet of samples of each method, from the same latents."""
    budgets = {method: "images" if method == BASE else budget for method in METHODS}
    files = {method: folder / f"{method}-{resolution}-{seed}-{budget}.npy" for method, budget in budgets.items()}
    of = {method: np.load(file)[:count] for method, file in files.items() if file.exists()}
    return {method: image_grid(torch.from_numpy(samples), columns) for method, samples in of.items()}


def side_by_side(pictures: dict[str, Image.Image]) -> Image.Image:
    """All sheets with their titles in one picture."""
    parts = [titled(picture, name) for name, picture in pictures.items()]
    whole = Image.new("RGB", (sum(p.width + 8 for p in parts), max(p.height for p in parts)), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + 8
    return whole


def pairs(folder: Path, resolution: int, budget: str, seeds: int) -> Image.Image:
    """24 samples of the first method (left) and of the best one (right), from the same latents; a row for each seed."""
    found = [sheets(folder, resolution, budget, seed, 24, 12) for seed in range(seeds)]
    best = BEST[resolution]
    shown = [[of[BASE], of[best]] for of in found if {BASE, best} <= of.keys()]
    width, height = shown[0][0].size
    whole = Image.new("RGB", (2 * width + 8, len(shown) * (height + 8)), "white")
    for row, pair in enumerate(shown):
        for column, picture in enumerate(pair):
            whole.paste(picture, (column * (width + 8), row * (height + 8)))
    return whole
