"""RS-IMLE: rejection sampling of the pool (Vashist, Peng, Li, ECCV 2024, Algorithm 1)."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, field_validator
from torch import Tensor

from imletriton.nearest import NearestSearch
from imletriton.selection import base
from imletriton.selection.vanilla import Vanilla

BISECTIONS = 7  # the radius is found to 1/128 of the ideal pool's mean distance


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
    """The radius at which the selected distances are those of an ideal pool of n samples.

    points [n, d], samples [m, d]. Let F_i be the distribution of the distance of x_i from a random sample. That of the
    nearest of m has survival (1 - F_i)^m (RS-IMLE, equation 3): the larger the pool, the nearer the selected samples,
    and the less they are like those that a latent drawn at test time gives. The paper wants the selected distances of
    the smallest sensible pool, m' = n, that is a prior with (1 - F~_i)^m = (1 - F_i)^n (equation 5, integrated), and
    approximates it by a step at epsilon. Here the step lies where both have the same mean over the data points:

        mean_i min {d(x_i, y_j) : y_j admissible at epsilon} = mean_i,b min {d(x_i, y_j) : y_j in block b},

    where the blocks are the pool's m / n disjoint ones of n samples, each of them an ideal pool. The left side grows
    with epsilon and is at least epsilon, so the root lies between 0 and the right side. What is returned is never so
    large that all samples would be rejected.
    """
    n = len(points)

    def selected(samples: Tensor, radius: float) -> Tensor:
        search = NearestSearch(points, reject_radius=radius)
        search.update(samples)
        return search.sq_distance.sqrt()  # inf where none is admissible

    blocks = [block for block in samples.split(n) if len(block) == n]
    ideal = float(torch.cat([selected(block, 0.0) for block in blocks]).median()) if blocks else torch.inf
    low, high = 0.0, ideal
    if ideal == torch.inf:  # samples that are not finite: nothing to learn from
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if selected(samples, middle).median() <= ideal else (low, middle)
    return low
