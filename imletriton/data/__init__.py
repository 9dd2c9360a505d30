"""Load the data points of a run, images or points in the plane, as one tensor."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from imletriton.errors import InputError

if TYPE_CHECKING:  # PyTorch and NumPy load slowly, and checking a recipe needs neither of them
    import numpy as np
    from torch import Tensor

BUILT_IN = {"faces": 100, "toy2d": 12}  # the sets that code draws, and how many data points each has


def load_points(
    source: str,
    resolution: int,
    mirror: bool = False,
    holdout: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Tensor":
    """Load the data points of a source that a model is trained on.

    Args:
        source: A folder of images, or the name of a built-in set ("faces" or "toy2d").
        resolution: The side to which images are cropped and resized, in pixels. toy2d ignores it.
        mirror: Whether to append the mirror image of every image. toy2d ignores it.
        holdout: The share of the data points to leave out, from 0 to 1. `held_out` returns those.
        progress: Called with the number of images decoded so far, and their total.

    Returns:
        Images as uint8 [n, 3, resolution, resolution], or the points of toy2d as float32 [n, 2].

    Raises:
        InputError: The source cannot be used, or `holdout` leaves too few data points.
    """
    return training_part(_read(source, resolution, progress), mirror, holdout)


def count_points(source: str, mirror: bool = False, holdout: float = 0.0) -> int:
    """Count the data points that `load_points` returns, by looking at the names of the files only.

    Args:
        source: A folder of images, or the name of a built-in set.
        mirror: Whether the mirror images count too.
        holdout: The share of the data points that is left out, from 0 to 1.

    Returns:
        The number of data points to train on.

    Raises:
        InputError: As in `load_points`, except that unreadable images are not noticed here.
    """
    from imletriton.data.files import list_training_images

    n = BUILT_IN[source] if source in BUILT_IN else len(list_training_images(source))
    n -= _count_held_out(n, holdout)
    return 2 * n if mirror and source != "toy2d" else n


def training_part(points: "Tensor", mirror: bool, holdout: float) -> "Tensor":
    """Select the data points that are trained on.

    Args:
        points: All data points of a source, [n, ...].
        mirror: Whether to append the mirror image of every image.
        holdout: The share of the data points to leave out.

    Returns:
        The selected points in their original order, followed by their mirror images where these are wanted.
    """
    import torch

    if holdout:  # otherwise they stay where they are, which may be a file that is mapped into memory
        points = points[_split(len(points), holdout)[0]]
    return torch.cat([points, points.flip(3)]) if mirror and points.ndim == 4 else points


def held_out(points: "Tensor", holdout: float) -> "Tensor":
    """Select the data points that training leaves out, which are the same ones every time.

    Args:
        points: All data points of a source, [n, ...].
        holdout: The share of the data points to leave out.

    Returns:
        The points that `training_part` does not select, in their original order.
    """
    return points[_split(len(points), holdout)[1]]


def content_hash(points: "Tensor") -> str:
    """Return a fingerprint of data points: the first 16 hexadecimal digits of the SHA-256 of their bytes."""
    return hashlib.sha256(points.cpu().contiguous().numpy().data).hexdigest()[:16]


def check_points(points: "Tensor", expected: str, run: str) -> None:
    """Check that data points are those that a run was trained on.

    Args:
        points: The data points that the source of the run holds now.
        expected: The `content_hash` that was saved in training.
        run: The name of the run, for the message.

    Raises:
        InputError: The data points have changed since.
    """
    if content_hash(points) != expected:
        raise InputError(f"data.source of {run} holds other pictures than it was trained on: put those back.")


def _read(source: str, resolution: int, progress: Callable[[int, int], None]) -> "Tensor":
    """Read all data points of a source, in the format that `load_points` returns."""
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
    """Return the indices of the points to train on and of the points to hold out, each in ascending order."""
    import numpy as np

    count = _count_held_out(n, holdout)
    order = np.random.default_rng(0).permutation(n)
    return np.sort(order[count:]), np.sort(order[:count])


def _count_held_out(n: int, holdout: float) -> int:
    """Return how many of n points are held out. Raises InputError where that leaves too few on either side."""
    count = round(n * holdout)
    if holdout and not 1 <= count <= n - 2:
        raise InputError(
            f"data.holdout {holdout} of {n} data points holds out {count}: at least 1 must be held out and at least 2 "
            "must remain to train on, so choose another share."
        )
    return count
