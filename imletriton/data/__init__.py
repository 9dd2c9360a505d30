"""Data points: a folder of images or a built-in set as one tensor."""

import hashlib
from typing import TYPE_CHECKING

from imletriton.errors import InputError

if TYPE_CHECKING:  # the catalogue and the checks of a recipe do without what loads slowly
    import numpy as np
    from torch import Tensor

BUILT_IN = {"faces": 100, "toy2d": 12}  # sets that are drawn, and how many data points they have


def load_points(source: str, resolution: int, mirror: bool = False, holdout: float = 0.0) -> "Tensor":
    """The data points of a source: uint8 [n, 3, resolution, resolution] for images, float32 [n, 2] for toy2d.

    source: a folder, or the name of a built-in set. mirror: append every picture's mirror image. holdout: the share
    left out (`held_out` has it). Raises InputError where the source cannot be used.
    """
    return training_part(_read(source, resolution), mirror, holdout)


def count_points(source: str, mirror: bool = False, holdout: float = 0.0) -> int:
    """How many data points `load_points` gives, by the names of files alone.

    Raises InputError as it does, but for images that cannot be read.
    """
    from imletriton.data.files import list_pictures

    n = BUILT_IN[source] if source in BUILT_IN else len(list_pictures(source))
    kept = n - _count_held_out(n, holdout)
    return 2 * kept if mirror and source != "toy2d" else kept


def training_part(points: "Tensor", mirror: bool, holdout: float) -> "Tensor":
    """What of all data points of a source is trained on; see `load_points`."""
    import torch

    points = points[_split(len(points), holdout)[0]]
    return torch.cat([points, points.flip(3)]) if mirror and points.ndim == 4 else points


def held_out(points: "Tensor", holdout: float) -> "Tensor":
    """What of all data points of a source is left out: always the same ones."""
    return points[_split(len(points), holdout)[1]]


def content_hash(points: "Tensor") -> str:
    """What tells data points from others."""
    return hashlib.sha256(points.cpu().numpy().tobytes()).hexdigest()[:16]


def check_points(points: "Tensor", expected: str, run: str) -> None:
    """Raise InputError where data points are not those of the expected content."""
    if content_hash(points) != expected:
        raise InputError(f"data.source of {run} holds other pictures than it was trained on: put those back.")


def _read(source: str, resolution: int) -> "Tensor":
    import torch
    from einops import rearrange

    from imletriton.data.faces import faces
    from imletriton.data.folder import read_folder
    from imletriton.data.toy2d import toy2d

    if source == "toy2d":
        return toy2d()
    pictures = faces(resolution) if source == "faces" else read_folder(source, resolution)
    return rearrange(torch.from_numpy(pictures), "n h w c -> n c h w").contiguous()


def _split(n: int, holdout: float) -> "tuple[np.ndarray, np.ndarray]":
    """Which of n points to train on and which to hold out, each in order."""
    import numpy as np

    count = _count_held_out(n, holdout)
    order = np.random.default_rng(0).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def _count_held_out(n: int, holdout: float) -> int:
    count = round(n * holdout)
    if holdout and not 1 <= count <= n - 2:
        raise InputError(f"data.holdout {holdout} of {n} data points holds out {count}: at least 1, and 2 must remain.")
    return count
