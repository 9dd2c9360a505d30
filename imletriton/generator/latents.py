"""Latent codes: standard normal vectors, each of which depends on its seed and its number alone."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LATENT_BLOCK = 64  # codes drawn at once, as seeding a random stream for each would be slow


def latent_codes(start: int, stop: int, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Draw the latent codes start..stop-1 of a random stream: float32 [stop - start, dim], on the CPU.

    Codes are standard normal. Code k depends on (seed, stream, k) alone, and the streams of a seed are independent.
    """
    first, last = start // LATENT_BLOCK, -(-stop // LATENT_BLOCK)
    codes = np.empty((max(last - first, 0) * LATENT_BLOCK, dim), dtype=np.float32)
    for block in range(first, last):
        rows = codes[(block - first) * LATENT_BLOCK :][:LATENT_BLOCK]
        np.random.default_rng([seed, stream, block]).standard_normal(out=rows, dtype=np.float32)
    return torch.from_numpy(codes)[start - first * LATENT_BLOCK :][: stop - start]


def latent_codes_at(numbers: Tensor, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Draw the codes of a random stream that have these numbers, int64 [k]: float32 [k, dim]; see `latent_codes`."""
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
    Codes of the same or of opposite direction, for which this is undefined, are interpolated linearly.

    Args:
        a: The start, float [..., dim].
        b: The end, float [..., dim].
        t: How far to go, from 0 to 1: a number, or a tensor [...] that broadcasts with the leading dimensions of a and
            b. So codes [dim] and t [k] give a row of k codes.

    Returns:
        Float [..., dim].
    """
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    angle = torch.acos((F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    along = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine
    return torch.where(sine < 1e-4, a + t * (b - a), along)


def latent_loop(keys: Tensor, t: float) -> Tensor:
    """Follow a smooth closed curve through latent codes.

    Its direction is that of a periodic Catmull-Rom spline of the codes, and its length the same spline of the codes'
    lengths. So it stays near the sphere on which standard normal codes lie, as slerp does.

    Args:
        keys: The codes that the curve passes through, float [k, ..., dim]; k is at least 2.
        t: How far to go: keys[j] is at j / k, and keys[0] again at 1.

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
