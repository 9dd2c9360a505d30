"""Metrics that compare generated samples with the data."""

from imletriton.metrics.frechet import frechet_distance
from imletriton.metrics.kid import kernel_distance
from imletriton.metrics.manifolds import precision_recall

__all__ = ["frechet_distance", "kernel_distance", "precision_recall"]
