"""Adaptive IMLE: a threshold for each data point (Aghabozorgi, Peng, Li, ICML 2023, Algorithm 3)."""

import torch
from torch import Tensor

from imletriton.selection.base import Strategy
from imletriton.selection.parameters import AdaptiveParameters

QUANTILES = ("min", "lower_quartile", "median", "upper_quartile", "max")  # of tau, as logged


class Adaptive(Strategy):
    """A data point gets a new neighbour once d(x_i, T(z*_i)) <= delta * tau_i; tau_i is then the new distance.

    As in the authors' code, a data point keeps its neighbour for at least `staleness` and at most `forced_refresh`
    epochs. One pool serves all data points. A new one is drawn when a data point that is due has used it already (line
    11 of the algorithm, where we read S' for S, as the paper's prose has it), or when it is `max_pool_age` epochs old.
    """

    name = "adaptive"
    reuses_pool = True
    Parameters = AdaptiveParameters
    settings: AdaptiveParameters
    tau: Tensor  # float32 [n], the thresholds
    assigned_at: Tensor  # int64 [n], the epoch of each data point's last assignment; -1: none yet
    accessed: Tensor  # bool [n], whether a data point has used the current pool
    drawn_at: Tensor  # int64 [], the epoch at which the current pool was drawn

    def __init__(self, n: int, settings: AdaptiveParameters) -> None:
        super().__init__(n, settings)
        self.register_buffer("tau", torch.full((n,), torch.inf))
        self.register_buffer("assigned_at", torch.full((n,), -1))
        self.register_buffer("accessed", torch.ones(n, dtype=torch.bool))
        self.register_buffer("drawn_at", torch.tensor(0))
        self.pool_age = 0  # the age of the pool in epochs when it was last used

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        settings, age = self.settings, epoch - self.assigned_at
        reached = (distance <= settings.delta * self.tau) & (age >= settings.staleness)
        return reached | (age >= settings.forced_refresh)

    def needs_pool(self, due: Tensor, epoch: int) -> bool:
        return bool((due & self.accessed).any()) or epoch - int(self.drawn_at) >= self.settings.max_pool_age

    def pool_drawn(self, epoch: int) -> None:
        self.accessed.zero_()
        self.drawn_at.fill_(epoch)

    def latents_assigned(self, due: Tensor, epoch: int, distance: Tensor) -> None:
        self.tau = torch.where(due, distance, self.tau)
        self.assigned_at.masked_fill_(due, epoch)
        self.accessed |= due
        self.pool_age = epoch - int(self.drawn_at)

    def metrics(self) -> dict[str, float]:
        levels = torch.linspace(0, 1, len(QUANTILES), device=self.tau.device)
        tau = zip(QUANTILES, torch.quantile(self.tau, levels).tolist(), strict=True)
        return {f"tau_{name}": value for name, value in tau} | {"pool_age": self.pool_age}
