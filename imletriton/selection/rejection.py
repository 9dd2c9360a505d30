"""RS-IMLE: rejection sampling of the pool (Vashist, Peng, Li, ECCV 2024, Algorithm 1)."""

import torch
from pydantic import BaseModel
from torch import Tensor

from imletriton.search import NearestSearch, nearest
from imletriton.selection import base, parameters
from imletriton.selection.vanilla import Vanilla

STEPS = 128  # the radius is found to this part of the pool


class Rejecting(base.Strategy, register=False):
    """What strategies with a rejection radius share: fixed, or found anew for each pool."""

    epsilon: Tensor
    Parameters = parameters.Rejecting

    def __init__(self, n: int, settings: BaseModel) -> None:
        super().__init__(n, settings)
        chosen = settings.epsilon  # type: ignore[attr-defined]
        self.found = chosen == "auto"
        self.register_buffer("epsilon", torch.tensor(torch.nan if self.found else chosen, dtype=torch.float64))

    def pool_drawn(self, epoch: int) -> None:
        super().pool_drawn(epoch)
        if self.found:
            self.epsilon.fill_(torch.nan)

    def reject_radius(self, points: Tensor, samples: Tensor) -> float:
        if self.epsilon.isnan():
            self.epsilon.fill_(aligning_radius(points, samples))
        return float(self.epsilon)

    def figures(self) -> dict[str, float]:
        return super().figures() | {"epsilon": float(self.epsilon)}


class Rejection(Rejecting, Vanilla):
    """As vanilla, but samples closer than `epsilon` to any data point are left out of the pool."""

    name = "rejection"
    Parameters = parameters.Rejection
    settings: parameters.Rejection


def aligning_radius(points: Tensor, samples: Tensor) -> float:
    """The radius at which the selected distances are most like those of an ideal pool of n samples.

    points [n, d], samples [m, d]. Let F_i be the distribution of the distance of x_i from a random sample. That of the
    nearest of m is 1 - (1 - F_i)^m (RS-IMLE, equation 3): the larger the pool, the nearer what is selected, and the
    less like what a latent drawn at test time gives. The paper wants the distances that a pool of m' = n would give,
    by a prior with (1 - F~_i)^m = (1 - F_i)^n (equation 5, integrated), and has a step at epsilon stand for it (6).

    Between n samples and n data points, the distance from a data point to its nearest sample is distributed as that
    from a sample to its nearest data point, H, as far as the two sets are alike. H is matched here: it is what test
    time gives, and data points that no sample reaches cannot drive it up. With G the distribution of what is selected
    at epsilon, the Kolmogorov-Smirnov distance of G and H is least where

        max_t (G(t) - H(t)) = H(epsilon):

    the left side, selecting too near, falls as epsilon grows; the right side, the share of the pool rejected, selecting
    nothing near, rises, and is at most a half there.
    """
    samples = samples[samples.isfinite().all(1)]
    if len(samples) == 0:
        return 0.0
    gap = nearest(samples, points).sq_distance.sqrt().sort().values
    candidates = gap[torch.arange(STEPS // 2 + 1, device=gap.device) * (len(gap) - 1) // STEPS]
    low, high = 0, STEPS // 2
    while low < high:
        middle = (low + high + 1) // 2
        search = NearestSearch(points, reject_radius=float(candidates[middle]))
        search.update(samples)
        selected = search.sq_distance.sqrt().sort().values
        share_selected = torch.arange(1, len(selected) + 1, device=gap.device) / len(selected)
        share_random = torch.searchsorted(gap, selected, right=True) / len(gap)
        too_near = float((share_selected - share_random).max())
        low, high = (middle, high) if too_near > middle / STEPS else (low, middle - 1)
    return float(candidates[low]) if low else 0.0
