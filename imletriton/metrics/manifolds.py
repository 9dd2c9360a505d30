"""Precision and recall of generated samples (Kynkaanniemi et al., NeurIPS 2019)."""

from torch import Tensor

from imletriton.search import NearestSearch, within


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall, each from 0 to 1, from features of samples [m, d] and data points [n, d].

    The manifold of a set is the union of balls around its points whose radii are the distances to their k-th nearest
    other points. Precision is the share of the samples in the manifold of the data, and recall is the share of the data
    in the manifold of the samples (equations 1 to 3 of the paper). Raises ValueError if a set has at most k points.
    """
    return float(covered(samples, data, k).double().mean()), float(covered(data, samples, k).double().mean())


def covered(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Return which queries [q, d] are in the manifold of points [n, d]: bool [q].

    Raises ValueError if there are at most k points, or if a value is not finite.
    """
    _check_finite(queries)
    return within(queries, points, kth_distance(points, k)).count > 0


def kth_distance(points: Tensor, k: int) -> Tensor:
    """Compute the distance, float64 [n], from each point [n, d] to its k-th nearest other point.

    Raises ValueError if there are at most k points, k is less than 1, or a point is not finite.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"each of {len(points)} points has no {k} others")
    _check_finite(points)
    search = NearestSearch(points, k=k + 1)  # each point is its own nearest, at distance 0
    search.update(points)
    return search.exact_sq_distance.amax(1).sqrt()  # the last one is the largest only in float32


def _check_finite(features: Tensor) -> None:
    """Raise ValueError if a value is not finite. Waits for the device."""
    if not features.isfinite().all():
        raise ValueError("features must be finite, but some hold NaN or infinity")
