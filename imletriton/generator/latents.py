"""Latent codes: standard normal, each by its seed and number alone."""

import numpy as np
import torch
from torch import Tensor

# Latents are drawn in blocks of this many codes: one random stream a code would be slow to seed.
LATENT_BLOCK = 64


def latent_codes(start: int, stop: int, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Standard normal latent codes start..stop-1 of a stream: float32 [stop - start, dim], on the CPU.

    Code k depends on (seed, stream, k) alone. Streams of one seed are independent of each other.
    """
    first, last = start // LATENT_BLOCK, -(-stop // LATENT_BLOCK)
    codes = np.empty((max(last - first, 0) * LATENT_BLOCK, dim), dtype=np.float32)
    for block in range(first, last):
        rows = codes[(block - first) * LATENT_BLOCK :][:LATENT_BLOCK]
        np.random.default_rng([seed, stream, block]).standard_normal(out=rows, dtype=np.float32)
    return torch.from_numpy(codes)[start - first * LATENT_BLOCK :][: stop - start]
