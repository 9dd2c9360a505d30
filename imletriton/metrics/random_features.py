"""Features of images by random convolutions, which need no download and know nothing of the images."""

import itertools

import torch
from torch import Tensor, nn

from imletriton.distance import as_float

CHANNELS = 3, 32, 64, 128
PIXELS = 2**18  # of the images that go through the convolutions at once


@torch.no_grad()
def random_features(images: Tensor, seed: int = 0) -> Tensor:
    """Compute the mean of each channel after each of three random convolutions.

    Args:
        images: uint8 or float [n, 3, H, W].
        seed: Of the convolutions.

    Returns:
        float32 [n, 224], on the device of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(CHANNELS):
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * inputs)) ** 0.5)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers.append(conv.to(images.device))
    features = []
    for x in images.split(max(1, PIXELS // (images.shape[2] * images.shape[3]))):
        x, means = as_float(x), []
        for layer in layers:
            x = layer(x).relu()
            means.append(x.mean((2, 3)))
        features.append(torch.cat(means, 1))
    return torch.cat(features)
