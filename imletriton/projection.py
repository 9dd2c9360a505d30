"""Random projection of features into the search space, without a dense matrix."""

import numpy as np
import torch
from torch import Tensor, nn


class CountSketch(nn.Module):
    """x [b, dim] -> [b, out_dim]: every coordinate is added, with a random sign, to one random bucket.

    Charikar, Chen, Farach-Colton (ICALP 2002); as a Johnson-Lindenstrauss map: Weinberger et al. (ICML 2009). With
    buckets of equal size, two coordinates share one with probability at most 1/k (k = out_dim), so that
        E ||Sx||^2 = ||x||^2   and   Var ||Sx||^2 <= (2/k) (||x||_2^4 - ||x||_4^4),
    never more than a dense Gaussian matrix's (2/k) ||x||^4; and where dim <= k it only permutes and flips signs, so
    distances stay exact. Takes 5 bytes a coordinate instead of 4k. Sums in a fixed order: deterministic.
    """

    index: Tensor
    sign: Tensor

    def __init__(self, dim: int, out_dim: int, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        rows = -(-dim // out_dim)
        # Row r of bucket j takes coordinate permutation[r, j]; the last places past dim have sign 0.
        order = rng.permutation(rows * out_dim)
        sign = rng.integers(0, 2, order.size, dtype=np.int8) * 2 - 1
        sign[order >= dim] = 0
        order[order >= dim] = 0
        self.register_buffer("index", torch.from_numpy(order.astype(np.int32)), persistent=False)
        self.register_buffer("sign", torch.from_numpy(sign).view(rows, out_dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gathered = x.index_select(1, self.index).view(len(x), *self.sign.shape)
        return (gathered * self.sign).sum(1)
