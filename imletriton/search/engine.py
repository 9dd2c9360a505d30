"""What the engines of a search have in common, and which one searches."""

from typing import Any, Protocol

from torch import Tensor


def by_kernels(vectors: Tensor) -> bool:
    """Tell whether Triton's kernels search these vectors: those on a GPU."""
    return vectors.is_cuda


class Engine(Protocol):
    """A search on one kind of device.

    sq_distance, float64 [n, k], and index, int64 [n, k], hold the k nearest samples of each query in any order; inf and
    -1 where there are fewer. accepted is int64 [].
    """

    @property
    def sq_distance(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def accepted(self) -> Tensor: ...

    def update(self, chunk: Any, offset: int) -> None: ...
