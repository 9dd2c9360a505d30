"""The distance d(x, y) between data points: a differentiable loss, and the features that the search works on."""

from imletriton.distance.base import Distance, Embedding, Euclidean, Pixels, as_float
from imletriton.distance.lpips import LPIPS

__all__ = ["LPIPS", "Distance", "Embedding", "Euclidean", "Pixels", "as_float"]
