"""Precision and recall of generated samples (Kynkaanniemi et al., NeurIPS 2019)."""

from torch import Tensor

from imletriton.search import NearestSearch, within


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall.

    The manifold of a set is the union of the balls about its points whose radii are the distances to their k-th nearest
    other point. Precision is the share of the samples that lie in the manifold of the data, and recall is the share of
    the data that lies in the manifold of the samples (equations 1 to 3 of the paper).

    Args:
        samples: Features of samples, [m, d].
        data: Features of data points, [n, d].
        k: Which neighbour gives the radius.

    Returns:
        Precision and recall, each from 0 to 1.

    Raises:
        ValueError: One of the sets does not have more than k points.
    """
    return float(covered(samples, data, k).double().mean()), float(covered(data, samples, k).double().mean())


def covered(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Find the queries that lie within the radius of any point, its distance to its k-th nearest other point.

    Args:
        queries: [q, d].
        points: [n, d], of the queries' dtype and device.
        k: Which neighbour gives the radius.

    Returns:
        bool [q].

    Raises:
        ValueError: There are no more than k points, or something is not finite.
    """
    _check_finite(queries)
    return within(queries, points, kth_distance(points, k)).count > 0


def kth_distance(points: Tensor, k: int) -> Tensor:
    """Compute the distance from each point to its k-th nearest other point.

    Args:
        points: [n, d].
        k: Which neighbour; 1 is the nearest.

    Returns:
        float64 [n].

    Raises:
        ValueError: There are no more than k points, k is less than 1, or a point is not finite.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"each of {len(points)} points has no {k} others")
    _check_finite(points)
    search = NearestSearch(points, k=k + 1)  # each point is its own nearest, at distance 0
    search.update(points)
    return search.exact_sq_distance.amax(1).sqrt()  # the last one is the greatest in float32 only


def _check_finite(features: Tensor) -> None:
    """Raise a ValueError where a value is not finite. Waits for the device."""
    if not features.isfinite().all():
        raise ValueError("features must be finite, but some hold NaN or infinity")
