"""What a search takes: vectors as they are, or prepared for several searches, which then share the work."""

import warnings
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from imletriton.search.backends import backend_of


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
    reference: Optional["Prepared"]  # None for the plain vectors of a single search
    operand: Any  # what the backend has made of the vectors, if anything

    def __init__(self, vectors: Tensor, reference: Optional["Prepared"] = None) -> None:
        self.vectors = vectors.detach()
        self.reference = self if reference is None else reference.reference
        self.operand = backend_of(vectors).prepare(self.vectors, None if reference is None else reference.operand)

    @classmethod
    def of(cls, vectors: "Vectors") -> "Prepared":
        """Return prepared vectors as they are; wrap others for a single search, which takes no work."""
        if isinstance(vectors, Prepared):
            return vectors
        plain = cls.__new__(cls)
        plain.vectors, plain.reference, plain.operand = as_tensor(vectors), None, None
        return plain

    def __len__(self) -> int:
        return len(self.vectors)


Vectors = Tensor | np.ndarray | Prepared  # [k, d]


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """Return a tensor without its gradient, or a NumPy array as a tensor that shares its memory.

    Searches never write to it, so it may be read-only. PyTorch has no negative strides: such an array is copied.

    Raises:
        ValueError: The array's values are of a type that PyTorch does not have.
    """
    if isinstance(values, Tensor):
        return values.detach()
    if any(stride < 0 for stride in values.strides):
        values = values.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.from_numpy(values)
        except TypeError as error:
            raise ValueError(f"an array of {values.dtype} cannot be searched: convert it to float32") from error
