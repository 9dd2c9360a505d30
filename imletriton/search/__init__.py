"""Exact nearest neighbours: by the Triton kernels on a GPU, by blocked products on a CPU."""

from imletriton.search.nearest import Nearest, NearestSearch, nearest
from imletriton.search.prepared import Prepared
from imletriton.search.within import Within, within

__all__ = ["Nearest", "NearestSearch", "Prepared", "Within", "nearest", "within"]
