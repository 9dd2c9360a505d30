"""Vanilla IMLE (Li and Malik, arXiv 1809.09087; Algorithm 1 of Adaptive IMLE)."""

import torch
from torch import Tensor

from imletriton.selection import base, parameters


class Vanilla(base.Strategy):
    """Every data point takes its nearest sample of a new pool, every `refresh` epochs."""

    name = "vanilla"
    Parameters = parameters.Vanilla
    settings: parameters.Vanilla

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        return torch.full_like(distance, epoch % self.settings.refresh == 0, dtype=torch.bool)
