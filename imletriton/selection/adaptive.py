"""Adaptive IMLE: a threshold for each data point (Aghabozorgi, Peng, Li, ICML 2023, Algorithm 3)."""

import torch
from torch import Tensor

from imletriton.selection import base, parameters

QUANTILES = ("min", "lower_quartile", "median", "upper_quartile", "max")  # of tau, as logged


class Adaptive(base.Strategy):
    """A data point gets a new neighbour once d(x_i, T(z*_i)) <= delta * tau_i; tau_i is then the new distance.

    As the authors run it: no sooner than `staleness` epochs after the last one, no later than `forced_refresh`. One
    pool serves all points; it is drawn anew when a point that is due has used it already (line 11 of the
    algorithm, reading S' for S as the prose has it), or when it is `max_pool_age` epochs old.
    """

    name = "adaptive"
    reuses_pool = True
    Parameters = parameters.Adaptive
    settings: parameters.Adaptive
    tau: Tensor
    assigned_at: Tensor
    accessed: Tensor
    drawn_at: Tensor

    def __init__(self, n: int, settings: parameters.Adaptive) -> None:
        super().__init__(n, settings)
        self.register_buffer("tau", torch.full((n,), torch.inf))
        self.register_buffer("assigned_at", torch.full((n,), -1))
        self.register_buffer("accessed", torch.ones(n, dtype=torch.bool))
        self.register_buffer("drawn_at", torch.tensor(0))
        self.pool_age = 0  # epochs, when last used

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        p, age = self.settings, epoch - self.assigned_at
        reached = (distance <= p.delta * self.tau) & (age >= p.staleness)
        return reached | (age >= p.forced_refresh)

    def needs_pool(self, due: Tensor, epoch: int) -> bool:
        return bool((due & self.accessed).any()) or epoch - int(self.drawn_at) >= self.settings.max_pool_age

    def pool_drawn(self, epoch: int) -> None:
        self.accessed.zero_()
        self.drawn_at.fill_(epoch)

    def assigned(self, due: Tensor, epoch: int, distance: Tensor) -> None:
        self.tau = torch.where(due, distance, self.tau)
        self.assigned_at.masked_fill_(due, epoch)
        self.accessed |= due
        self.pool_age = epoch - int(self.drawn_at)

    def figures(self) -> dict[str, float]:
        at = torch.linspace(0, 1, len(QUANTILES), device=self.tau.device)
        tau = zip(QUANTILES, torch.quantile(self.tau, at).tolist(), strict=True)
        return {f"tau_{name}": value for name, value in tau} | {"pool_age": self.pool_age}
