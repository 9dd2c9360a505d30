"""The distance d(x, y) of data points: a differentiable loss, and features for the nearest-neighbour search."""

from imletriton.distance.base import Bands, Distance, Embedding, Euclidean, Pixels, as_float
from imletriton.distance.lpips import LPIPS

__all__ = ["LPIPS", "Bands", "Distance", "Embedding", "Euclidean", "Pixels", "as_float"]
