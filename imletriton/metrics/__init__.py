"""Measures of a model against its data."""

from imletriton.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
