"""Metrics that compare generated samples with the data."""

from imletriton.metrics.authenticity import authenticity, authenticity_of_data
from imletriton.metrics.frechet import frechet_distance
from imletriton.metrics.kid import kernel_distance
from imletriton.metrics.manifolds import precision_recall

__all__ = ["authenticity", "authenticity_of_data", "frechet_distance", "kernel_distance", "precision_recall"]
