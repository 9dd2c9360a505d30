"""Load the data points of a run, images or points in the plane, as one tensor."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from imletriton.errors import InputError

if TYPE_CHECKING:  # PyTorch and NumPy load slowly, and checking a recipe needs neither of them
    import numpy as np
    from torch import Tensor

BUILT_IN = {"faces": 100, "toy2d": 12}  # the built-in sets, and how many data points each has


def load_points(
    source: str,
    resolution: int,
    mirror: bool = False,
    holdout: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Tensor":
    """Load the data points to train on.

    Args:
        source: A folder of images, or the name of a built-in set ("faces" or "toy2d").
        resolution: The side to which images are cropped and resized, in pixels; ignored by toy2d.
        mirror: Whether to append the mirror image of every image; ignored by toy2d.
        holdout: The share of the data points to leave out, which `held_out` returns.
        progress: Called with the number of images decoded so far, and their total.

    Returns:
        Images as uint8 [n, 3, resolution, resolution], or the points of toy2d as float32 [n, 2].

    Raises:
        InputError: The source cannot be used, or `holdout` leaves too few data points.
    """
    return training_part(_read(source, resolution, progress), mirror, holdout)


def count_points(source: str, mirror: bool = False, holdout: float = 0.0) -> int:
    """Count the data points that `load_points` returns, without reading images.

    Raises:
        InputError: As in `load_points`, except for unreadable images.
    """
    from imletriton.data.files import list_training_images

    n = BUILT_IN[source] if source in BUILT_IN else len(list_training_images(source))
    n -= _count_held_out(n, holdout)
    return 2 * n if mirror and source != "toy2d" else n


def training_part(points: "Tensor", mirror: bool, holdout: float) -> "Tensor":
    """Select the data points to train on from all those of a source, [n, ...]; mirror images are appended."""
    import torch

    if holdout:  # otherwise they are not copied, as they may be a file that is mapped into memory
        points = points[_split(len(points), holdout)[0]]
    return torch.cat([points, points.flip(3)]) if mirror and points.ndim == 4 else points


def held_out(points: "Tensor", holdout: float) -> "Tensor":
    """Select the data points that training leaves out, always the same ones, from all those of a source, [n, ...]."""
    return points[_split(len(points), holdout)[1]]


def content_hash(points: "Tensor") -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the data points' bytes."""
    return hashlib.sha256(points.cpu().contiguous().numpy().data).hexdigest()[:16]


def check_points(points: "Tensor", expected: str, run: str) -> None:
    """Raise InputError, which names the run, unless data points have the `content_hash` that its training saved."""
    if content_hash(points) != expected:
        raise InputError(f"data.source of {run} holds other pictures than it was trained on: put those back.")


def _read(source: str, resolution: int, progress: Callable[[int, int], None]) -> "Tensor":
    import torch
    from einops import rearrange

    from imletriton.data.faces import faces
    from imletriton.data.folder import read_folder
    from imletriton.data.toy2d import toy2d

    if source == "toy2d":
        return toy2d()
    if source == "faces":
        return rearrange(torch.from_numpy(faces(resolution)), "n h w c -> n c h w").contiguous()
    return torch.from_numpy(read_folder(source, resolution, progress))


def _split(n: int, holdout: float) -> "tuple[np.ndarray, np.ndarray]":
    """Return the indices of the points to train on and of those to hold out, in ascending order."""
    import numpy as np

    count = _count_held_out(n, holdout)
    order = np.random.default_rng(0).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def _count_held_out(n: int, holdout: float) -> int:
    """Return how many of n points are held out. Raises InputError if that leaves too few on either side."""
    count = round(n * holdout)
    if holdout and not 1 <= count <= n - 2:
        raise InputError(
            f"data.holdout {holdout} of {n} data points holds out {count}: at least 1 must be held out and at least 2 "
            "must remain to train on, so choose another share."
        )
    return count
