"""Features of images by random convolutions, which need no download."""

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance.base import as_float, random_kernels

PIXELS = 2**18  # of images that are convolved at once


@torch.no_grad()
def random_features(images: Tensor, seed: int = 0) -> Tensor:
    """Compute the mean of each channel after each of three random convolutions of this seed.

    Takes uint8 or float [n, 3, H, W], and returns float32 [n, 224] on the same device.
    """
    kernels, features = [kernel.to(images.device) for kernel in random_kernels(seed)], []
    for x in images.split(max(1, PIXELS // (images.shape[2] * images.shape[3]))):
        x, means = as_float(x), []
        for kernel in kernels:
            x = F.conv2d(x, kernel, stride=2, padding=1).relu()
            means.append(x.mean((2, 3)))
        features.append(torch.cat(means, 1))
    return torch.cat(features)
