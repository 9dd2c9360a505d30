"""Exact nearest neighbours: which sample of a pool is closest to each query, chunk by chunk."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 512  # samples compared at once: nothing larger than float64 [n, BLOCK] or [BLOCK, d] is held


class Nearest(NamedTuple):
    """Squared distance, float32 [n], to the nearest sample, and its index, int64 [n]."""

    sq_distance: Tensor
    index: Tensor  # type: ignore[assignment]  # the name every nearest-neighbour library uses


class NearestSearch:
    """The running minimum of squared Euclidean distances from queries to samples that arrive in chunks.

    queries: [n, d], floating point, finite. searching: bool [n], the queries that want a neighbour (all by default).
    reject_radius: samples closer than this (not squared) to any query, searching or not, are left out (RS-IMLE,
    Algorithm 1); None or 0 leaves out none.

    Results: `sq_distance` float32 [n] and `index` int64 [n], which counts over all chunks seen (inf and -1: none);
    `accepted` and `rejected`, int64 scalars, count the samples. A sample that is not finite is never chosen and counts
    as rejected. Ties go to the lowest index. Distances are recomputed from differences, so close pairs stay exact.
    """

    def __init__(self, queries: Tensor, searching: Tensor | None = None, reject_radius: float | None = None) -> None:
        if queries.ndim != 2 or not queries.is_floating_point():
            raise ValueError(f"queries must be a floating-point [n, d], not {queries.dtype} {list(queries.shape)}")
        if not torch.isfinite(queries).all():
            raise ValueError("queries must be finite, but some hold NaN or infinity")
        if searching is not None and (searching.dtype != torch.bool or searching.shape != queries.shape[:1]):
            raise ValueError(f"searching must be bool [{len(queries)}], not {searching.dtype} {list(searching.shape)}")
        if reject_radius is not None and not reject_radius >= 0:
            raise ValueError(f"reject_radius must be 0 or more, not {reject_radius}")
        n, device = len(queries), queries.device
        self.queries = queries
        self.searching = torch.ones(n, dtype=torch.bool, device=device) if searching is None else searching
        self.reject_radius = reject_radius or 0.0
        self.sq_distance = torch.full((n,), torch.inf, device=device)
        self.index = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.seen = 0
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._best = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self._centre = queries.double().mean(0) if n else queries.new_zeros(queries.shape[1], dtype=torch.float64)
        self._wide = queries.double() - self._centre
        self._wide_sq = self._wide.square().sum(1, keepdim=True)

    @property
    def rejected(self) -> Tensor:
        """How many samples were left out so far."""
        return self.seen - self.accepted

    def update(self, chunk: Tensor) -> None:
        """Compare the next samples, [c, d] of the queries' dtype and device. c may be 0."""
        q = self.queries
        if chunk.ndim != 2 or chunk.shape[1] != q.shape[1]:
            raise ValueError(f"samples must be [c, {q.shape[1]}] like the queries, not {list(chunk.shape)}")
        if (chunk.dtype, chunk.device) != (q.dtype, q.device):
            raise ValueError(f"samples are {chunk.dtype} on {chunk.device}, queries {q.dtype} on {q.device}")
        for block in chunk.split(BLOCK):
            self._update_block(block)

    def _update_block(self, block: Tensor) -> None:
        admissible = torch.isfinite(block).all(1)
        wide = torch.where(admissible[:, None], block, 0).double() - self._centre
        wide_sq = wide.square().sum(1)
        sq = torch.addmm(self._wide_sq + wide_sq, self._wide, wide.T, alpha=-2)  # float64 [n, c]
        # The product only proposes: where its rounding could decide, differences do.
        slack = 1e-14 * wide.shape[1] ** 0.5 * (self._wide_sq + wide_sq)
        if self.reject_radius:
            limit = self.reject_radius**2
            sq = self._rescored(sq, (sq - limit).abs() <= slack, wide)
            admissible &= sq.amin(0) >= limit
        sq = sq.masked_fill(~(admissible & self.searching[:, None]), torch.inf)
        if sq.numel():
            close = (sq - slack <= (sq + slack).amin(1, keepdim=True)) & sq.isfinite()
            sq = self._rescored(sq.masked_fill(~close, torch.inf), close, wide)
            least = sq.amin(1)
            first = (sq == least[:, None]).int().argmax(1)  # min promises no order among equals
            better = least < self._best
            self._best = torch.where(better, least, self._best)
            self.index = torch.where(better, first + self.seen, self.index)
            self.sq_distance = self._best.float()
        self.accepted += admissible.sum()
        self.seen += len(block)

    def _rescored(self, sq: Tensor, where: Tensor, wide: Tensor) -> Tensor:
        """sq with the entries at where recomputed from differences, a bounded number at a time."""
        pairs = where.nonzero()
        for i, j in (p.T for p in pairs.split(max(1, 2**22 // max(1, wide.shape[1])))):
            sq[i, j] = (self._wide[i] - wide[j]).square().sum(1)
        return sq


def nearest(queries: Tensor, pool: Tensor) -> Nearest:
    """The nearest of the pool's samples, [m, d], to each query, [n, d], by Euclidean distance.

    Raises ValueError where shapes, dtypes or devices disagree or a query is not finite.
    """
    search = NearestSearch(queries)
    search.update(pool)
    return Nearest(search.sq_distance, search.index)
