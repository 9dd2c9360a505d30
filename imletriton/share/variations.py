"""Latent codes near existing pictures.

A picture has one latent code, float32 [1, latent_dim]; or three, [3, latent_dim], from which the coarse, middle and
fine blocks of the decoder take their styles.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from imletriton.generator import Generator, latent_codes
from imletriton.generator.model import SAMPLE_BATCH

STREAM = 2**32  # of the random numbers of neighbours; no pool of a training has this number


def neighbourhood(codes: Tensor, distance: float, noise: Tensor) -> Tensor:
    """Move latent codes, which stay standard normal: sqrt(1 - distance^2) z + distance noise.

    Args:
        codes: One picture's latent codes, float32 [k, dim].
        distance: How far, from 0, which changes nothing, to 1, which leaves the noise alone.
        noise: Standard normal, float32 [n, dim]. All codes of a picture move by the same noise.

    Returns:
        The codes of n pictures, float32 [n, k, dim].
    """
    return math.sqrt(1 - distance**2) * codes + distance * noise[:, None]


@torch.no_grad()
def draw(model: Generator, codes: Tensor) -> Tensor:
    """Make pictures of latent codes, in batches of at most SAMPLE_BATCH.

    Args:
        model: The generator.
        codes: Float32 [n, 1, latent_dim]; or [n, 3, latent_dim], for coarse, middle and fine blocks.

    Returns:
        uint8 [n, 3, H, W], on the CPU.

    Raises:
        InputError: There are three codes for each picture, and the decoder has no blocks.
    """
    device = next(model.parameters()).device
    parts = [z.to(device).unbind(1) for z in codes.split(SAMPLE_BATCH)]
    return torch.cat([model.decoder.at_rest(model(*z) if len(z) == 1 else model.mix(*z)).cpu() for z in parts])


def neighbours(
    model: Generator, codes: Tensor, distance: float, seed: int, start: int, stop: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make the neighbours start..stop-1 of a picture. Neighbour k depends on the picture, distance, seed and k alone.

    Args:
        model: The generator.
        codes: The picture's latent codes, float32 [1 or 3, latent_dim].
        distance: See `neighbourhood`.
        seed: The random seed.
        start: The number of the first neighbour.
        stop: The number after that of the last neighbour.

    Yields:
        Batches of latent codes, float32 [b, 1 or 3, latent_dim], and their pictures, uint8 [b, 3, H, W].
    """
    for first in range(start - start % SAMPLE_BATCH, stop, SAMPLE_BATCH):  # whole batches, as in Generator.sample
        noise = latent_codes(first, first + SAMPLE_BATCH, codes.shape[1], seed=seed, stream=STREAM)
        moved = neighbourhood(codes, distance, noise)
        wanted = slice(max(start - first, 0), stop - first)
        yield moved[wanted], draw(model, moved)[wanted]
