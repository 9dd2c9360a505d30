"""The search backends: cpu.py and gpu.py have the functions of `Backend`, and `backend_of` chooses between them."""

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from imletriton.search.prepared import Prepared


class Search(Protocol):
    """The running minimum over chunks of samples.

    sq_distance, float64 [n, k], and index, int64 [n, k], hold the k nearest samples of each query in any order; inf and
    -1 where there are fewer. accepted, int64 [], counts the admissible samples.
    """

    sq_distance: Tensor
    index: Tensor
    accepted: Tensor

    def update(self, samples: "Prepared", offset: int) -> None:
        """Compare the queries with more samples, [c, d]; offset is the index of the first one."""


class Backend(Protocol):
    """What a backend does. Shapes, dtypes and devices have been checked."""

    def check_queries(self, queries: Tensor) -> None:
        """Raise a ValueError if the backend cannot search for these queries, floating-point [n, d]."""

    def prepare(self, vectors: Tensor, reference: Any) -> Any:
        """Return the `operand` of vectors [k, d] that are prepared, given that of their reference; None: their own."""

    def start_search(self, queries: "Prepared", searching: Tensor | None, reject_radius: float, k: int) -> Search:
        """Start a search for the k nearest samples to queries [n, d].

        searching is bool [n], the queries that want neighbours; None for all. Samples closer than reject_radius to any
        query are left out; 0 leaves out none.
        """

    def count_within(self, queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
        """Count the samples [m, d] within their radius of each query: int64 [n]; -1 for a query that is not finite.

        sq_radius is float64 [m], the greatest squared distance to each sample; negative: none. A sample that is not
        finite is within no radius.
        """

    def pairs_within(self, queries: Tensor, samples: Tensor, sq_radius: Tensor, number: int) -> Tensor:
        """List these pairs, int64 [number, 2], each a query and a sample, in any order.

        number is what `count_within` found in all; see `check_unchanged`.
        """


def on_gpu(vectors: Tensor) -> bool:
    """Tell whether vectors are on a GPU, so that the Triton kernels search them."""
    return vectors.is_cuda


def backend_of(vectors: Tensor) -> Backend:
    """Return the backend that searches these vectors."""
    if on_gpu(vectors):
        from imletriton.search import gpu  # here, because Triton takes a second to load

        return gpu
    from imletriton.search import cpu

    return cpu


def check_unchanged(found: int, counted: int) -> None:
    """Raise a ValueError unless as many pairs within the radius are found as were counted."""
    if found != counted:
        raise ValueError("queries, pool or radius have changed between `count` and `pairs`: call `within` again")
