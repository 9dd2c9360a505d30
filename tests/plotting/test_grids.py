from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imletriton.plotting.grids import image_grid, save_samples


def test_a_grid_shows_every_image_in_rows_of_eight() -> None:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 64, 64)
    grid = np.asarray(image_grid(images))
    assert grid.shape == (256, 1024, 3)
    assert grid[0, ::128, 0].tolist() == list(range(8))
    assert grid[128, ::128, 0].tolist() == [8, 9] + [255] * 6


def test_points_are_drawn_over_the_data(tmp_path: Path) -> None:
    save_samples(tmp_path / "a" / "b.png", torch.randn(50, 2), torch.randn(5, 2))
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a" / "b.png")).reshape(-1, 3), axis=0)) > 3
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]
