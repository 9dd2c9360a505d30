"""Random projection of features into the search space, without a dense matrix."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LANES = 16  # coordinates in a piece, at most: 64 bytes as float32, which is one cache line


class CountSketch(nn.Module):
    """A random linear map S that adds every coordinate, with a random sign, to one of k random buckets.

    Charikar, Chen, Farach-Colton (ICALP 2002); Weinberger et al. (ICML 2009) use it as a Johnson-Lindenstrauss map.

    The coordinates are cut into rows of at most k = out_dim coordinates. Each row is laid over the buckets, one
    coordinate to a bucket, and rotated by a random shift. So two coordinates of the same row never share a bucket, and
    two coordinates of different rows share one with probability 1/k:

        E ||Sx||^2 = ||x||^2   and   Var ||Sx||^2 <= (2/k) (||x||_2^4 - ||x||_4^4).

    The variance is at most that of a dense Gaussian matrix, (2/k) ||x||^4. If dim <= k, the map only moves coordinates
    and flips signs, so distances are exact. The map takes less than two bytes of memory per coordinate, a dense float32
    matrix 4k. Sums are taken in a fixed order, so results are deterministic.

    For speed, coordinates move in pieces of up to LANES neighbours: pieces whose first coordinates belong to the same
    bucket are added up, and then each lane of the sums is added to its own bucket.

    Args:
        dim: The number of coordinates.
        out_dim: The number of buckets, k.
        seed: The random seed of signs and shifts.
        row: The length of a row, at most out_dim, which is the default.

    Attributes:
        sign: The sign of each coordinate, int8 [dim].
        shift: The shift of each row, int32 [rows].
        pieces: The pieces' numbers, sorted by the bucket of their first coordinate, int32.
        first: Where those of each bucket begin in `pieces`, int32 [out_dim].
    """

    sign: Tensor
    shift: Tensor
    pieces: Tensor
    first: Tensor

    def __init__(self, dim: int, out_dim: int, seed: int, row: int | None = None) -> None:
        super().__init__()
        self.dim, self.out_dim, self.row = dim, out_dim, row or out_dim
        self.lanes = math.gcd(self.row, LANES)
        rng = np.random.default_rng(seed)
        rows = -(-dim // self.row)
        shift = rng.integers(0, out_dim, rows, dtype=np.int32)
        sign = rng.integers(0, 2, (rows, out_dim), dtype=np.int8) * 2 - 1  # by row and bucket
        coordinate = np.arange(dim)
        row_of = coordinate // self.row
        bucket = (coordinate % self.row + shift[row_of]) % out_dim
        start = bucket[:: self.lanes]
        pieces = np.argsort(start, kind="stable")
        first = np.searchsorted(start[pieces], np.arange(out_dim))
        buffers = {"sign": sign[row_of, bucket], "shift": shift}
        buffers |= {"pieces": pieces.astype(np.int32), "first": first.astype(np.int32)}
        for name, values in buffers.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Project x, [b, dim], to [b, out_dim]."""
        return self.collect(x * self.sign)

    def collect(self, signed: Tensor) -> Tensor:
        """Project coordinates that are already multiplied by `sign`: float [b, dim] -> float [b, out_dim]."""
        b, k, lanes = len(signed), self.out_dim, self.lanes
        x = rearrange(F.pad(signed, (0, -self.dim % lanes)), "b (piece lane) -> (b piece) lane", lane=lanes)
        sample_start = len(self.pieces) * torch.arange(b, dtype=torch.int32, device=x.device)[:, None]
        index, offsets = (sample_start + self.pieces).flatten(), (sample_start + self.first).flatten()
        sums = F.embedding_bag(index, x, offsets, mode="sum")
        sums = rearrange(sums, "(b bucket) lane -> b bucket lane", bucket=k)
        # Lane l of the pieces that start at bucket j belongs to bucket (j + l) mod k: this sums along the diagonals.
        sums = torch.cat([sums[:, k - lanes + 1 :], sums], 1)
        return sums.as_strided((b, k, lanes), (sums.stride(0), lanes, lanes - 1), lanes - 1).sum(2)
