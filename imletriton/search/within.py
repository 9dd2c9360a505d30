"""All pairs within a radius: how many samples of a pool are close to each query, and which."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from imletriton.search.backends import backend_of
from imletriton.search.nearest import check_queries, check_samples
from imletriton.search.prepared import as_tensor

TOLERANCE = 1e-12  # of the squared radius: a sample at the distance that gave the radius is within it


class Within:
    """The pairs of a query and a sample that are at most a radius apart; see `within`.

    Attributes:
        count: int64 [n], how many samples are within the radius of each query; on a GPU -1 for queries that are not
            finite.
    """

    def __init__(self, queries: Tensor, pool: Tensor, sq_radius: Tensor) -> None:
        self._arguments = queries, pool, sq_radius
        self.count = backend_of(queries).count_within(*self._arguments)

    @cached_property
    def pairs(self) -> Tensor:
        """The pairs, int64 [p, 2], each row a query and a sample, sorted by query, then by sample.

        They are computed when they are first asked for, since there may be as many as n x m of them. A GPU is waited
        for.

        Raises:
            ValueError: Queries, pool or radius have changed since the pairs were counted.
        """
        queries, pool, _ = self._arguments
        number = int(self.count.clamp(min=0).sum())
        pairs = backend_of(queries).pairs_within(*self._arguments, number)
        m = max(1, len(pool))
        code = (pairs[:, 0] * m + pairs[:, 1]).sort().values
        return torch.stack([code // m, code % m], 1)


def within(queries: Tensor | np.ndarray, pool: Tensor | np.ndarray, radius: float | Tensor | np.ndarray) -> Within:
    """Find all pairs of a query and a sample with |query - sample| <= radius, by Euclidean distance.

    Distances are computed from differences, as NearestSearch computes them, and compared with the radius to 10^-12: a
    sample whose distance gave the radius is within it. Counting holds nothing of size n x m, and does not wait for a
    GPU; so a query that is not finite raises no error there: its count is -1, and it has no pairs.

    NumPy arrays are taken like tensors on the CPU, without a copy; the results are tensors in any case.

    Args:
        queries: [n, d], float32, float16 or bfloat16, finite; on the CPU also float64.
        pool: the samples, [m, d], of the queries' dtype and device. One that is not finite is within no radius.
            There may be none, which is within no radius of any query either: all counts are 0 then.
        radius: 0 or more, infinity included; or floating-point [m], on the same device, one radius for each sample. A
            sample whose radius there is negative or NaN is within it of no query.

    Returns:
        `count`, int64 [n], how many samples each query has within the radius; and `pairs`, int64 [p, 2], which these
        are, computed when first asked for (see Within): until then, the tensors must not change.

    Raises:
        ValueError: a shape, dtype or device is wrong, a query on the CPU is not finite, or radius is a number that is
            negative or NaN.
    """
    queries, pool = as_tensor(queries), as_tensor(pool)
    check_queries(queries)
    check_samples(pool, queries)
    if isinstance(radius, np.ndarray):
        radius = as_tensor(radius)
    if not isinstance(radius, Tensor):
        if not radius >= 0:
            raise ValueError(f"radius must be 0 or more, not {radius}")
        radius = torch.full((len(pool),), radius, dtype=torch.float64, device=pool.device)
    if not radius.is_floating_point() or radius.shape != pool.shape[:1]:
        raise ValueError(
            f"radius must be a number or floating-point [{len(pool)}], not {radius.dtype} {list(radius.shape)}"
        )
    if radius.device != pool.device:
        raise ValueError(f"radius is on {radius.device}, pool on {pool.device}")
    radius = as_tensor(radius).double()
    sq_radius = torch.where(radius >= 0, radius.square() * (1 + TOLERANCE), -1.0)
    return Within(queries, pool, sq_radius)
