"""Precision and recall of generated samples (Kynkaanniemi et al., NeurIPS 2019)."""

import torch
from torch import Tensor

from imletriton.search import nearest

BLOCK = 256  # points whose distances to all others are in memory at once
TOLERANCE = 1e-5  # of the largest squared radius; a query closer than that to a ball's surface is decided in float64


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
    """Find the queries x that lie within the radius r_i of any point y_i, its distance to its k-th nearest other point.

    Whether min_i (|x - y_i|^2 - r_i^2) <= 0 is decided by one nearest-neighbour search: let R be the largest radius,
    give every point the additional coordinate sqrt(R^2 - r_i^2) and every query the additional coordinate 0; the
    nearest squared distance then is min_i (|x - y_i|^2 - r_i^2) + R^2. Where the result is too close to R^2 for
    float32, the distances are recomputed in float64.

    Args:
        queries: [q, d].
        points: [n, d].
        k: Which neighbour gives the radius.

    Returns:
        bool [q].

    Raises:
        ValueError: There are no more than k points.
    """
    radius = kth_distance(points, k)
    largest = radius.max()
    additional = (largest.square() - radius.square()).clamp_min(0).sqrt().to(points)
    lifted_points = torch.cat([points, additional[:, None]], 1)
    lifted_queries = torch.cat([queries, queries.new_zeros(len(queries), 1)], 1)
    margin = nearest(lifted_queries, lifted_points).sq_distance - largest.square()
    inside = margin <= 0
    exact = points.double()
    for row in (margin.abs() <= TOLERANCE * largest.square()).nonzero()[:, 0].tolist():
        inside[row] = (torch.linalg.vector_norm(exact - queries[row].double(), dim=1) <= radius).any()
    return inside


def kth_distance(points: Tensor, k: int) -> Tensor:
    """Compute the distance from each point to its k-th nearest other point, without holding an n x n matrix.

    Args:
        points: [n, d].
        k: Which neighbour; 1 is the nearest.

    Returns:
        float64 [n].

    Raises:
        ValueError: There are no more than k points, or k is less than 1.
    """
    if not 1 <= k < len(points):
        raise ValueError(f"each of {len(points)} points has no {k} others")
    radii = []
    double = points.double()
    for start in range(0, len(points), BLOCK):
        rows = double[start : start + BLOCK]
        distances = torch.cdist(rows, double)
        own = torch.arange(len(rows))
        distances[own, start + own] = torch.inf
        near = distances.topk(k, largest=False).indices
        # cdist uses products, which cancel where points nearly coincide, so the distances are recomputed exactly.
        radii.append(torch.linalg.vector_norm(rows[:, None] - double[near], dim=2).amax(1))
    return torch.cat(radii)
