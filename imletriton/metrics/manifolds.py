"""Precision and recall of samples (Kynkaanniemi et al., NeurIPS 2019)."""

import torch
from torch import Tensor

from imletriton.search import nearest

BLOCK = 256  # queries compared with all others at once, where that is needed
TOLERANCE = 1e-5  # of the largest ball's squared radius: nearer to a surface than that, the search does not decide


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of the samples [m, d] that lie in the data's manifold, and of the data [n, d] in the samples'.

    A set's manifold: the balls about its points that reach to their k-th nearest other point (the paper's equations 1
    to 3). Raises ValueError where a set has no k other points.
    """
    return float(covered(samples, data, k).double().mean()), float(covered(data, samples, k).double().mean())


def covered(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Which queries [q, d] lie within any point's [n, d] distance to its k-th nearest other point: bool [q].

    min_i (|x - y_i|^2 - r_i^2) <= 0 is a search for one nearest neighbour, once every point has one coordinate more,
    sqrt(R^2 - r_i^2) with R the largest radius, and every query 0. What comes out too close to R^2 is compared exactly.
    """
    radius = kth_distance(points, k)
    largest = radius.max()
    height = (largest.square() - radius.square()).clamp_min(0).sqrt().to(points)
    lifted = torch.cat([points, height[:, None]], 1)
    gap = nearest(torch.cat([queries, queries.new_zeros(len(queries), 1)], 1), lifted).sq_distance - largest.square()
    inside = gap <= 0
    exact = points.double()
    for row in (gap.abs() <= TOLERANCE * largest.square()).nonzero()[:, 0].tolist():
        inside[row] = (torch.linalg.vector_norm(exact - queries[row].double(), dim=1) <= radius).any()
    return inside


def kth_distance(points: Tensor, k: int) -> Tensor:
    """The distance from each point [n, d] to its k-th nearest other one: float64 [n]. No n x n matrix is held."""
    if not 1 <= k < len(points):
        raise ValueError(f"each of {len(points)} points has no {k} others")
    found = []
    double = points.double()
    for start in range(0, len(points), BLOCK):
        rows = double[start : start + BLOCK]
        distances = torch.cdist(rows, double)
        own = torch.arange(len(rows))
        distances[own, start + own] = torch.inf
        near = distances.topk(k, largest=False).indices
        # Products cancel where points nearly coincide: differences decide.
        found.append(torch.linalg.vector_norm(rows[:, None] - double[near], dim=2).amax(1))
    return torch.cat(found)
