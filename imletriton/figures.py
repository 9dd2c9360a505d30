"""Pictures people look at."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from imletriton.run import write_whole

COLUMNS = 8


def save_samples(path: Path, samples: Tensor, points: Tensor) -> None:
    """Samples as one PNG: images, uint8 [n, 3, H, W], as a grid; points in the plane, [n, 2], over the data points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image_grid(samples) if samples.ndim == 4 else _scatter(samples, points)
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


def _scatter(samples: Tensor, points: Tensor) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot(aspect="equal")
    axes.scatter(samples[:, 0].cpu(), samples[:, 1].cpu(), s=4, color="#0072b2", alpha=0.5, label="samples")
    axes.scatter(points[:, 0].cpu(), points[:, 1].cpu(), s=60, color="#d55e00", marker="s", label="data points")
    axes.legend(loc="upper right")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
