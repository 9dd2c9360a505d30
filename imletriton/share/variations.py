"""What latent codes make more pictures of the pictures that there are: neighbours and mixes.

The latent codes of one picture are float32 [1, latent_dim]; or [3, latent_dim], where the coarse, middle and fine
blocks of the decoder take their styles from different ones.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from imletriton.generator import Generator, latent_codes
from imletriton.generator.model import SAMPLE_BATCH

STREAM = 2**32  # of the random numbers that lead to neighbours; training has no pool of this number


def neighbourhood(codes: Tensor, distance: float, noise: Tensor) -> Tensor:
    """Move latent codes away, so that they stay standard normal: sqrt(1 - distance^2) z + distance noise.

    Args:
        codes: One picture's latent codes, float32 [k, dim].
        distance: How far, from 0 (not at all) to 1 (where nothing is left of them).
        noise: Standard normal, float32 [n, dim]. All codes of a picture move by the same noise.

    Returns:
        The codes of n pictures, float32 [n, k, dim].
    """
    return math.sqrt(1 - distance**2) * codes + distance * noise[:, None]


def mixed(one: Tensor, other: Tensor, parts: tuple[bool, bool, bool]) -> Tensor:
    """Take coarse, middle and fine latent codes each from one of two pictures.

    Args:
        one: A picture's latent codes, float32 [1 or 3, dim].
        other: Those of another picture.
        parts: Which of coarse, middle and fine are the other picture's.

    Returns:
        Float32 [3, dim].
    """
    taken = torch.tensor(parts)[:, None]
    return torch.where(taken, other.expand(3, -1), one.expand(3, -1))


@torch.no_grad()
def draw(model: Generator, codes: Tensor) -> Tensor:
    """Make pictures of latent codes, in batches of at most SAMPLE_BATCH.

    Args:
        model: The generator.
        codes: Float32 [n, 1, latent_dim]; or [n, 3, latent_dim], for coarse, middle and fine blocks.

    Returns:
        uint8 [n, 3, H, W], on the CPU.

    Raises:
        InputError: There are codes for coarse, middle and fine blocks, and the decoder has no blocks.
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
        Batches of latent codes, float32 [b, 1 or 3, latent_dim], and the pictures of them, uint8 [b, 3, H, W].
    """
    for first in range(start - start % SAMPLE_BATCH, stop, SAMPLE_BATCH):  # whole batches, as in Generator.sample
        noise = latent_codes(first, first + SAMPLE_BATCH, codes.shape[1], seed=seed, stream=STREAM)
        moved = neighbourhood(codes, distance, noise)
        wanted = slice(max(start - first, 0), stop - first)
        yield moved[wanted], draw(model, moved)[wanted]
