"""Exact nearest neighbours: which samples of a pool are closest to each query, chunk by chunk."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imletriton.search.backends import backend_of
from imletriton.search.prepared import Prepared, Vectors, as_tensor


class Nearest(NamedTuple):
    """Squared distances to the nearest samples, float32, and their indices, int64: both [n], or [n, k] with a k."""

    sq_distance: Tensor
    index: Tensor  # type: ignore[assignment]  # the name every nearest-neighbour library uses


class NearestSearch:
    """The nearest samples of each query, by Euclidean distance, among samples that arrive in chunks.

    The chosen sample's distance is the least to 10^-6, the returned one is that sample's to 10^-5, and samples are
    rejected by their true distances outside of 10^-6 of the radius, however close the vectors are to each other and far
    from the origin. With a k the same holds for the k-th least distance. A sample that is not finite is never chosen
    and counts as rejected. Ties go to the lowest index. Vectors whose difference overflows float32 never become
    neighbours, unless they are float64. Nothing of size n x c is held.

    On a GPU, nothing waits for the results. So a query that is not finite raises no error there: its sq_distance is
    NaN, or infinite if the queries were prepared, and its index is -1.

    Args:
        queries: [n, d], float32, float16 or bfloat16, finite; on the CPU also float64. A tensor, or a NumPy array,
            whose memory is shared; results are tensors in any case. Vectors that several searches use can be prepared
            for them.
        searching: bool [n], the queries that want a neighbour; all by default.
        reject_radius: samples closer than this (not squared) to any query, searching or not, are left out (RS-IMLE,
            Algorithm 1); None or 0 leaves out none.
        k: how many neighbours each query gets, on a GPU at most 1,024. None stands for one, without a dimension for it
            in the results.

    Raises:
        ValueError: a shape, dtype or device is wrong, a query on the CPU is not finite, reject_radius is negative, or k
            is not an integer of at least 1, or too large for a GPU.
    """

    def __init__(
        self,
        queries: Vectors,
        searching: Tensor | np.ndarray | None = None,
        reject_radius: float | None = None,
        k: int | None = None,
    ) -> None:
        self._queries = queries = Prepared.of(queries)
        self.queries = vectors = queries.vectors
        check_queries(vectors)
        searching = None if searching is None else as_tensor(searching)
        if searching is not None and (searching.dtype != torch.bool or searching.shape != vectors.shape[:1]):
            raise ValueError(f"searching must be bool [{len(vectors)}], not {searching.dtype} {list(searching.shape)}")
        if searching is not None and searching.device != vectors.device:
            raise ValueError(f"searching is on {searching.device}, queries on {vectors.device}")
        if reject_radius is not None and not reject_radius >= 0:
            raise ValueError(f"reject_radius must be 0 or more, not {reject_radius}")
        if k is not None and (type(k) is not int or k < 1):
            raise ValueError(f"k must be an integer of at least 1, not {k}")
        self.k = k
        self.seen = 0
        self._search = backend_of(vectors).start_search(queries, searching, reject_radius or 0.0, k or 1)

    @property
    def sq_distance(self) -> Tensor:
        """The squared distances to the nearest samples, float32 [n] or [n, k], nearest first; inf: none."""
        return self.exact_sq_distance.float()

    @property
    def exact_sq_distance(self) -> Tensor:
        """The squared distances as they were compared, float64 [n] or [n, k]: to combine several searches' results.

        They are in the order of sq_distance, so two that are equal in float32 can be in either order.
        """
        return self._ordered(self._search.sq_distance)

    @property
    def index(self) -> Tensor:
        """The nearest samples' indices, which count over all chunks seen, int64 [n] or [n, k]; -1: none."""
        return self._ordered(self._search.index)

    @property
    def accepted(self) -> Tensor:
        """The number of admissible samples so far, int64 []."""
        return self._search.accepted

    @property
    def rejected(self) -> Tensor:
        """The number of samples left out so far, int64 []."""
        return self.seen - self.accepted

    def update(self, chunk: Vectors) -> None:
        """Compare the queries with the next samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device. c may be 0. They may be a NumPy array, or
                prepared for these queries; see Prepared.

        Raises:
            ValueError: the chunk's shape, dtype or device does not match the queries', or they are not prepared for
                each other.
        """
        samples = Prepared.of(chunk)
        check_samples(samples.vectors, self.queries)
        self._check_references(samples)
        self._search.update(samples, self.seen)
        self.seen += len(samples)

    def _check_references(self, samples: Prepared) -> None:
        """Raise a ValueError unless one side is what the other was prepared with, or nothing is prepared."""
        queries = self._queries
        if queries.reference is None and samples.reference is not None:
            raise ValueError("the samples are prepared, but the queries are not: prepare the queries, too")
        if queries.reference is None or (samples.reference is None and queries.reference is queries):
            return
        if samples.reference is None:
            raise ValueError("the queries are prepared with a reference, so the samples have to be that reference")
        if samples.reference is not queries.reference or queries.reference not in (queries, samples):
            raise ValueError("neither the queries nor the samples are the reference with which the others are prepared")

    def _ordered(self, values: Tensor) -> Tensor:
        """Put the backend's values [n, k] into the results' order: by float32 distance, then by index, "none" last."""
        if self.k is None:
            return values.view(len(values))
        by_index = self._search.index.bitwise_and(torch.iinfo(torch.int64).max).argsort(1)  # -1 becomes the greatest
        by_distance = self._search.sq_distance.float().gather(1, by_index).argsort(dim=1, stable=True)
        return values.gather(1, by_index.gather(1, by_distance))


def nearest(queries: Vectors, pool: Vectors, k: int | None = None) -> Nearest:
    """The nearest of the pool's samples to each query, or its k nearest, by Euclidean distance (see NearestSearch).

    NumPy arrays are taken like tensors on the CPU, without a copy; the results are tensors in any case.

    Args:
        queries: [n, d], float32, float16 or bfloat16, finite; on the CPU also float64.
        pool: the samples, [m, d], of the queries' dtype and device, at least one.
        k: how many neighbours each query gets, on a GPU at most 1,024. None stands for one, without a dimension for it
            in the results.

    Returns:
        sq_distance, float32 [n], and index, int64 [n]; inf and -1 where no sample is finite. With a k both are [n, k],
        the nearest sample first, equal distances in the order of their indices; inf and -1 beyond the finite samples.
        On a GPU, a query that is not finite gets NaN and -1.

    Raises:
        ValueError: a shape, dtype or device is wrong, the pool is empty, a query on the CPU is not finite, or k is not
            an integer of at least 1, or too large for a GPU.
    """
    search = NearestSearch(queries, k=k)
    search.update(pool)
    if search.seen == 0:
        raise ValueError("the pool is empty, so no query has a nearest sample: give at least one sample")
    return Nearest(search.sq_distance, search.index)


def check_queries(queries: Tensor) -> None:
    """Raise a ValueError unless queries are [n, d] of a dtype that their backend supports and, on the CPU, finite."""
    if queries.ndim != 2 or not queries.is_floating_point():
        raise ValueError(f"queries must be a floating-point [n, d], not {queries.dtype} {list(queries.shape)}")
    backend_of(queries).check_queries(queries)


def check_samples(samples: Tensor, queries: Tensor) -> None:
    """Raise a ValueError unless samples are [m, d] with the d, the dtype and the device of the queries."""
    if samples.ndim != 2 or samples.shape[1] != queries.shape[1]:
        raise ValueError(f"samples must be [c, {queries.shape[1]}] like the queries, not {list(samples.shape)}")
    if (samples.dtype, samples.device) != (queries.dtype, queries.device):
        raise ValueError(
            f"samples are {samples.dtype} on {samples.device}, queries {queries.dtype} on {queries.device}: "
            "convert one of them"
        )
