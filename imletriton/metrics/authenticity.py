"""Authenticity: the share of samples that are new, rather than copies of training data (Alaa et al., ICML 2022)."""

import torch
from torch import Tensor

from imletriton.metrics.manifolds import kth_distance
from imletriton.search import nearest


def authenticity(samples: Tensor, training: Tensor) -> float:
    """Compute the share of samples that are not copies, from features of samples [m, d] and training points [n, d].

    A sample is authentic if it is farther from its nearest training point than that point is from its nearest other
    one (section 3.3 of the paper). Raises ValueError if there are fewer than two training points, or one is not finite.
    """
    neighbours = nearest(samples, training)
    own = kth_distance(training, 1)[neighbours.index]
    return float((neighbours.sq_distance.double().sqrt() > own).double().mean())


def authenticity_of_data(training: Tensor) -> float | None:
    """Compute the authenticity of training points [n, d]: of each as a sample, compared with all others.

    This is what to expect of samples that are as new as real data: about a half, not 1, as of two new points, one is
    often nearer to the other than that is to all the rest. None if there are fewer than three points.
    """
    if len(training) < 3:
        return None
    found = nearest(training, training, k=3)
    itself = found.index == torch.arange(len(training), device=found.index.device)[:, None]
    distance, order = found.sq_distance.masked_fill(itself, torch.inf).sort(1)
    index = found.index.gather(1, order)
    first = index[:, 0]
    mutual = index[first, 0] == torch.arange(len(training), device=first.device)
    own = torch.where(mutual, distance[first, 1], distance[first, 0])  # without the point that serves as a sample
    return float((distance[:, 0] > own).double().mean())
