"""The distance d(x, y) of data points: a differentiable loss, and features for the nearest-neighbour search."""

from imletriton.distance.base import Distance, Embedding, Euclidean, Pixels, as_float
from imletriton.distance.lpips import LPIPS

__all__ = ["LPIPS", "Distance", "Embedding", "Euclidean", "Pixels", "as_float"]
