"""Features of images by random convolutions, which need no download."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import as_float

CHANNELS = 3, 32, 64, 128
PIXELS = 2**18  # of images that are convolved at once


@torch.no_grad()
def random_features(images: Tensor, seed: int = 0) -> Tensor:
    """Compute the mean of each channel after each of three random convolutions of this seed.

    Takes uint8 or float [n, 3, H, W], and returns float32 [n, 224] on the same device.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [  # PyTorch's layers would draw from the global random generator
        (torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5).to(images.device)
        for inputs, outputs in itertools.pairwise(CHANNELS)
    ]
    features = []
    for x in images.split(max(1, PIXELS // (images.shape[2] * images.shape[3]))):
        x, means = as_float(x), []
        for weight in weights:
            x = F.conv2d(x, weight, stride=2, padding=1).relu()
            means.append(x.mean((2, 3)))
        features.append(torch.cat(means, 1))
    return torch.cat(features)
