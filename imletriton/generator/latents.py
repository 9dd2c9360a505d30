"""Latent codes: standard normal vectors, each of which depends on its seed and its number alone."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Latent codes are drawn in blocks of this size, because seeding a random stream for each one would be slow.
LATENT_BLOCK = 64


def latent_codes(start: int, stop: int, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Draw the latent codes start..stop-1 of a random stream.

    Code k depends on (seed, stream, k) alone. Streams of one seed are independent of each other.

    Args:
        start: The number of the first code.
        stop: The number after that of the last code.
        dim: The dimension of a code.
        seed: The random seed.
        stream: The number of the stream.

    Returns:
        Standard normal codes, float32 [stop - start, dim], on the CPU.
    """
    first, last = start // LATENT_BLOCK, -(-stop // LATENT_BLOCK)
    codes = np.empty((max(last - first, 0) * LATENT_BLOCK, dim), dtype=np.float32)
    for block in range(first, last):
        rows = codes[(block - first) * LATENT_BLOCK :][:LATENT_BLOCK]
        np.random.default_rng([seed, stream, block]).standard_normal(out=rows, dtype=np.float32)
    return torch.from_numpy(codes)[start - first * LATENT_BLOCK :][: stop - start]


def latent_codes_at(numbers: Tensor, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Draw some latent codes of a random stream; see latent_codes.

    Args:
        numbers: The numbers of the codes, int64 [k].
        dim: The dimension of a code.
        seed: The random seed.
        stream: The number of the stream.

    Returns:
        Float32 [k, dim], on the CPU.
    """
    numbers = numbers.cpu()
    codes, order = torch.empty(len(numbers), dim), numbers.argsort()
    blocks, counts = (numbers[order] // LATENT_BLOCK).unique_consecutive(return_counts=True)
    for block, rows in zip(blocks.tolist(), order.split(counts.tolist()), strict=True):
        first = block * LATENT_BLOCK
        codes[rows] = latent_codes(first, first + LATENT_BLOCK, dim, seed=seed, stream=stream)[numbers[rows] - first]
    return codes


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate between latent codes along the sphere that they lie on (Shoemake 1985; White 2016).

    slerp(a, b, t) = (sin((1 - t) omega) a + sin(t omega) b) / sin(omega), where omega is the angle between a and b.
    Codes of one direction, for which this is 0 / 0, are interpolated linearly, and so are opposite ones, between which
    no way is the shortest.

    Args:
        a: Where it begins, float [..., dim].
        b: Where it ends, float [..., dim].
        t: How far it is, from 0 to 1: one number, or a tensor [...] that broadcasts with the leading dimensions of a
            and b. So codes [dim] and t [k] give a row of k codes.

    Returns:
        Float [..., dim].
    """
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    angle = torch.acos((F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    along = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine
    return torch.where(sine < 1e-4, a + t * (b - a), along)


def latent_loop(keys: Tensor, t: float) -> Tensor:
    """Go along a closed smooth curve through latent codes, whose direction and speed never change at once.

    The curve is a periodic Catmull-Rom spline of the codes, of which the direction is taken; its length is the same
    spline of the codes' lengths. So it stays near the sphere on which standard normal codes lie, as slerp does.

    Args:
        keys: The codes that the curve passes, float [k, ..., dim]; k is at least 2.
        t: How much of the loop has passed: at j / k it is at keys[j], and at 1 at keys[0] again.

    Returns:
        Float [..., dim].
    """
    at = t * len(keys)
    j, x = math.floor(at), at - math.floor(at)
    weights = (x * (-1 + x * (2 - x)), 2 + x * x * (3 * x - 5), x * (1 + x * (4 - 3 * x)), x * x * (x - 1))
    around = [keys[(j + k - 1) % len(keys)] for k in range(4)]
    mixed = sum((w / 2 * z for w, z in zip(weights, around, strict=True)), start=torch.zeros(()))
    lengths = (w / 2 * z.norm(dim=-1, keepdim=True) for w, z in zip(weights, around, strict=True))
    return F.normalize(mixed, dim=-1) * sum(lengths, start=torch.zeros(()))
