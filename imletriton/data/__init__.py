"""Data points: a folder of images or a built-in set as one tensor."""

import torch
from torch import Tensor

from imletriton.data.faces import faces
from imletriton.data.folder import read_folder
from imletriton.data.toy2d import toy2d


def load_points(source: str, resolution: int, mirror: bool = False) -> Tensor:
    """The data points of a source: uint8 [n, 3, resolution, resolution] for images, float32 [n, 2] for toy2d.

    source: a folder, or the name of a built-in set. mirror: append every picture's mirror image. Raises InputError
    where the source cannot be used.
    """
    if source == "toy2d":
        return toy2d()
    pictures = faces(resolution) if source == "faces" else read_folder(source, resolution)
    points = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return torch.cat([points, points.flip(3)]) if mirror else points
