"""RS-IMLE: rejection sampling of the pool (Vashist, Peng, Li, ECCV 2024, Algorithm 1)."""

import torch
from pydantic import BaseModel
from torch import Tensor

from imletriton.search import NearestSearch, Prepared
from imletriton.selection.base import Strategy
from imletriton.selection.parameters import RejectingParameters, RejectionParameters
from imletriton.selection.vanilla import Vanilla

STEPS = 128  # an automatic radius rejects k / STEPS of the pool, for some whole number k
PART = 4096  # samples copied at once


class Rejecting(Strategy):
    """Base class of strategies with a rejection radius, which is fixed, or found for each pool."""

    Parameters = RejectingParameters
    epsilon: Tensor  # float64 [], the radius; NaN until it is found for the current pool

    def __init__(self, n: int, settings: BaseModel) -> None:
        super().__init__(n, settings)
        epsilon = settings.epsilon  # type: ignore[attr-defined]
        self.automatic = epsilon == "auto"
        self.register_buffer("epsilon", torch.tensor(torch.nan if self.automatic else epsilon, dtype=torch.float64))

    def pool_drawn(self, epoch: int) -> None:
        super().pool_drawn(epoch)
        if self.automatic:
            self.epsilon.fill_(torch.nan)

    def reject_radius(self, points: Prepared, samples: Prepared) -> float:
        if self.epsilon.isnan():
            self.epsilon.fill_(aligning_radius(points, samples))
        return float(self.epsilon)

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"epsilon": float(self.epsilon)}


class Rejection(Rejecting, Vanilla):
    """As `Vanilla`, but samples closer than `epsilon` to any data point are rejected."""

    name = "rejection"
    Parameters = RejectionParameters
    settings: RejectionParameters


def aligning_radius(points: Prepared, samples: Prepared) -> float:
    """Find the radius at which the selected distances are most like those of an ideal pool of n samples.

    Let F_i be the distribution of the distance of x_i from a random sample. The distance of the nearest of m samples
    is distributed as 1 - (1 - F_i)^m (RS-IMLE, equation 3): the larger the pool, the nearer the selected samples, and
    the less they are like those of test time. The paper wants the distances that a pool of m' = n samples would give,
    by a prior with (1 - F~_i)^m = (1 - F_i)^n (equation 5, integrated), and approximates that prior by a step at
    epsilon (equation 6).

    For n samples and n data points, the distance from a data point to its nearest sample is distributed as the distance
    from a sample to its nearest data point, H, as far as the two sets are alike. We match H, because it is what test
    time gives, and because data points that no sample reaches cannot increase it. With G the distribution of the
    selected distances at epsilon, the Kolmogorov-Smirnov distance of G and H is smallest where

        max_t (G(t) - H(t)) = H(epsilon).

    The left side measures by how much the selection is too near, and falls as epsilon grows. The right side is the
    share of the pool that is rejected; it rises with epsilon, and is at most one half where the two sides meet.

    Args:
        points: Search features of the data points, float32 [n, d].
        samples: Search features of the pool, float32 [m, d], prepared with the points as their reference. Those that
            are not finite are ignored.

    Returns:
        The radius epsilon, a plain distance; 0 if nothing should be rejected.
    """
    # These are NaN if any value is; isfinite() of all values would take more memory than the vectors.
    least, most = samples.vectors.aminmax(dim=1)
    finite = least.isfinite() & most.isfinite()
    if not finite.all():
        samples = Prepared(samples.vectors[finite], points)
    if len(samples) == 0:
        return 0.0
    search = NearestSearch(samples)
    search.update(points)
    sq_gap, order = search.exact_sq_distance.sort()
    gap = sq_gap.float().sqrt()
    candidates = gap[torch.arange(STEPS // 2 + 1, device=gap.device) * (len(gap) - 1) // STEPS]
    first = torch.searchsorted(sq_gap, candidates.double().square()).tolist()  # order[first:] is admissible
    low, high = 0, STEPS // 2
    # A sample that is admissible at a radius is so at every smaller one. So no sample is searched twice, and all
    # searches together take about as long as one of the whole pool.
    searched = first[high]
    distance = _nearest_distance(points, samples, order[searched:])
    while low < high:
        middle = (low + high + 1) // 2
        between = _nearest_distance(points, samples, order[first[middle] : searched])
        selected = torch.minimum(distance, between).sort().values
        share_selected = torch.arange(1, len(selected) + 1, device=gap.device) / len(selected)
        share_random = torch.searchsorted(gap, selected, right=True) / len(gap)
        too_near = float((share_selected - share_random).max())
        if too_near > middle / STEPS:
            low = middle
        else:
            high, searched, distance = middle - 1, first[middle], torch.minimum(distance, between)
    return float(candidates[low]) if low else 0.0


def _nearest_distance(points: Prepared, samples: Prepared, index: Tensor) -> Tensor:
    """The distance of each data point from the nearest of the samples at index, float32 [n]; infinite without any."""
    search = NearestSearch(points)
    for first in range(0, len(index), PART):
        search.update(Prepared(samples.vectors[index[first : first + PART]], points))
    return search.sq_distance.sqrt()
