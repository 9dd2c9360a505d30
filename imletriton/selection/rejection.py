"""RS-IMLE: rejection sampling of the pool (Vashist, Peng, Li, ECCV 2024, Algorithm 1)."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, field_validator
from torch import Tensor

from imletriton.nearest import NearestSearch, nearest
from imletriton.selection import base
from imletriton.selection.vanilla import Vanilla

BISECTIONS = 7  # the radius is found to 1/128 of the matched distance


class Rejecting(base.Strategy, register=False):
    """What strategies with a rejection radius share: fixed, or found anew for each pool."""

    epsilon: Tensor

    class Parameters(base.Parameters):
        epsilon: float | Literal["auto"] = 0.15  # rejection radius, among search features

        @field_validator("epsilon", mode="before")
        @classmethod
        def _check_epsilon(cls, epsilon: Any) -> Any:
            if epsilon != "auto" and (type(epsilon) not in (float, int) or not epsilon >= 0):
                raise ValueError(f'{epsilon!r} is neither a distance of 0 or more nor "auto"')
            return epsilon if epsilon == "auto" else float(epsilon)

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
            self.epsilon.fill_(matching_radius(points, samples))
        return float(self.epsilon)

    def figures(self) -> dict[str, float]:
        return super().figures() | {"epsilon": float(self.epsilon)}


class Rejection(Rejecting, Vanilla):
    """As vanilla, but samples closer than `epsilon` to any data point are left out of the pool."""

    name = "rejection"

    class Parameters(Rejecting.Parameters, Vanilla.Parameters):
        pass

    settings: Parameters


def matching_radius(points: Tensor, samples: Tensor) -> float:
    """The radius at which selected distances are those of an ideal pool of n samples.

    points [n, d], samples [m, d]. Let F_i be the distribution of the distance of x_i from a random sample. That of the
    nearest of m is 1 - (1 - F_i)^m (RS-IMLE, equation 3): the larger the pool, the nearer what is selected, and the
    less like what a latent drawn at test time gives. The paper wants the distances that a pool of m' = n would give,
    by a prior with (1 - F~_i)^m = (1 - F_i)^n (equation 5, integrated), and has a step at epsilon stand for it (6).

    Between n samples and n data points, the distance from a data point to its nearest sample is distributed as that
    from a sample to its nearest data point, as far as the two sets are alike. The second is matched here: it is what
    test time gives, and unreached data points cannot drive it up. By the median, as a step can match no more:

        median_i min {d(x_i, y_j) : y_j admissible at epsilon} = median_j min_i d(x_i, y_j).

    The left side grows with epsilon and is at least epsilon, so epsilon is at most the right side: no more than half of
    the pool is rejected. Where the left side is larger even at 0, as before training, nothing is.
    """
    gap = nearest(samples[samples.isfinite().all(1)], points).sq_distance.sqrt()
    if len(gap) == 0:
        return 0.0
    ideal = float(gap.median())
    low, high = 0.0, ideal
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        search = NearestSearch(points, reject_radius=middle)
        search.update(samples)
        low, high = (middle, high) if search.sq_distance.median().sqrt() <= ideal else (low, middle)
    return low
