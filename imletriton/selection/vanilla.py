"""Vanilla IMLE (Li and Malik, arXiv 1809.09087; Algorithm 1 of Adaptive IMLE)."""

import torch
from torch import Tensor

from imletriton.selection.base import Strategy
from imletriton.selection.parameters import VanillaParameters


class Vanilla(Strategy):
    """Every `refresh` epochs, a new pool is drawn and every data point takes its nearest sample from it."""

    name = "vanilla"
    Parameters = VanillaParameters
    settings: VanillaParameters

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        return torch.full_like(distance, epoch % self.settings.refresh == 0, dtype=torch.bool)
