"""Exact nearest neighbours: which sample of a pool is closest to each query, chunk by chunk."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imletriton.search.cpu import BlockedSearch


class Nearest(NamedTuple):
    """The squared distance to the nearest sample, float32 [n], and its index, int64 [n]."""

    sq_distance: Tensor
    index: Tensor  # type: ignore[assignment]  # the name every nearest-neighbour library uses


class Engine(Protocol):
    """A search on one kind of device. sq_distance is float64 [n], index int64 [n], accepted int64 []."""

    @property
    def sq_distance(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def accepted(self) -> Tensor: ...

    def update(self, chunk: Tensor, offset: int) -> None: ...


class NearestSearch:
    """The running minimum of squared Euclidean distances from queries to samples that arrive in chunks.

    The chosen sample's distance is the least to 10^-6, the returned one is that sample's to 10^-5, and samples are
    rejected by their true distances outside of 10^-6 of the radius, however close the vectors are to each other and far
    from the origin. A sample that is not finite is never chosen and counts as rejected. Ties go to the lowest index.
    Nothing of size n x c is held, and on a GPU nothing waits for it.

    Args:
        queries: [n, d], float32, float16 or bfloat16, finite; on the CPU also float64.
        searching: bool [n], the queries that want a neighbour; all by default.
        reject_radius: samples closer than this (not squared) to any query, searching or not, are left out (RS-IMLE,
            Algorithm 1); None or 0 leaves out none.

    Raises:
        ValueError: a shape, dtype or device is wrong, a query is not finite, or reject_radius is negative.
    """

    def __init__(self, queries: Tensor, searching: Tensor | None = None, reject_radius: float | None = None) -> None:
        if queries.ndim != 2 or not queries.is_floating_point():
            raise ValueError(f"queries must be a floating-point [n, d], not {queries.dtype} {list(queries.shape)}")
        if queries.is_cuda and queries.dtype == torch.float64:
            raise ValueError("float64 queries are for the CPU: on a GPU use float32, whose distances are as exact")
        if not torch.isfinite(queries).all():
            raise ValueError("queries must be finite, but some hold NaN or infinity")
        if searching is not None and (searching.dtype != torch.bool or searching.shape != queries.shape[:1]):
            raise ValueError(f"searching must be bool [{len(queries)}], not {searching.dtype} {list(searching.shape)}")
        if searching is not None and searching.device != queries.device:
            raise ValueError(f"searching is on {searching.device}, queries on {queries.device}")
        if reject_radius is not None and not reject_radius >= 0:
            raise ValueError(f"reject_radius must be 0 or more, not {reject_radius}")
        self.queries = queries = queries.detach()
        self.seen = 0
        self._search: Engine
        if queries.is_cuda:
            from imletriton.kernels.search import TritonSearch  # here, as Triton takes a second to load

            self._search = TritonSearch(queries, searching, reject_radius or 0.0)
        else:
            self._search = BlockedSearch(queries, searching, reject_radius or 0.0)

    @property
    def sq_distance(self) -> Tensor:
        """The squared distances to the nearest samples, float32 [n]; inf: none."""
        return self._search.sq_distance.float()

    @property
    def exact_sq_distance(self) -> Tensor:
        """The squared distances as they were compared, float64 [n]: for a minimum over several searches."""
        return self._search.sq_distance

    @property
    def index(self) -> Tensor:
        """The nearest samples' indices, which count over all chunks seen, int64 [n]; -1: none."""
        return self._search.index

    @property
    def accepted(self) -> Tensor:
        """The number of admissible samples so far, int64 []."""
        return self._search.accepted

    @property
    def rejected(self) -> Tensor:
        """The number of samples left out so far, int64 []."""
        return self.seen - self.accepted

    def update(self, chunk: Tensor) -> None:
        """Compare the queries with the next samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device. c may be 0.

        Raises:
            ValueError: the chunk's shape, dtype or device does not match the queries'.
        """
        queries = self.queries
        if chunk.ndim != 2 or chunk.shape[1] != queries.shape[1]:
            raise ValueError(f"samples must be [c, {queries.shape[1]}] like the queries, not {list(chunk.shape)}")
        if (chunk.dtype, chunk.device) != (queries.dtype, queries.device):
            raise ValueError(
                f"samples are {chunk.dtype} on {chunk.device}, queries {queries.dtype} on {queries.device}"
            )
        self._search.update(chunk.detach(), self.seen)
        self.seen += len(chunk)


def nearest(queries: Tensor, pool: Tensor) -> Nearest:
    """The nearest of the pool's samples to each query, by Euclidean distance (see NearestSearch).

    Args:
        queries: [n, d], float32, float16 or bfloat16, finite; on the CPU also float64.
        pool: the samples, [m, d], of the queries' dtype and device.

    Returns:
        sq_distance, float32 [n], and index, int64 [n]; inf and -1 where no sample is finite.

    Raises:
        ValueError: a shape, dtype or device is wrong, or a query is not finite.
    """
    search = NearestSearch(queries)
    search.update(pool)
    return Nearest(search.sq_distance, search.index)
