"""Vectors made ready for several searches, so that these share the work."""

from typing import TYPE_CHECKING, Optional

from torch import Tensor

from imletriton.search import engine

if TYPE_CHECKING:
    from imletriton.kernels.search import RoundedVectors


class Prepared:
    """Vectors that several searches take as queries or as samples, and what these searches share.

    On a GPU this is the vectors rounded to float16 with bounds on the error (kernels/rounding.py), which takes two
    more bytes a value; on the CPU nothing is kept. The results of a search are the same with and without.

    Args:
        vectors: floating-point [k, d]. They must not change while they are prepared.
        reference: The vectors about whose centre and in whose scale these are rounded. A search has them on its other
            side: only the reference itself and vectors prepared with it can be searched together. By default these
            vectors are their own reference, and finite.
    """

    vectors: Tensor
    reference: "Prepared"
    rounded: "RoundedVectors | None"

    def __init__(self, vectors: Tensor, reference: Optional["Prepared"] = None) -> None:
        self.vectors = vectors = vectors.detach()
        self.reference = self if reference is None else reference.reference
        self.rounded = None
        if engine.by_kernels(vectors):
            from imletriton.kernels.search import RoundedVectors  # here, as Triton loads slowly

            self.rounded = RoundedVectors.about(vectors, None if reference is None else self.reference.rounded)

    def __len__(self) -> int:
        return len(self.vectors)
