"""Vanilla IMLE (Li and Malik, arXiv 1809.09087; Algorithm 1 of Adaptive IMLE)."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from imletriton.selection import base


class Vanilla(base.Strategy):
    """Every data point takes its nearest sample of a new pool, every `refresh` epochs."""

    name = "vanilla"

    class Parameters(base.Parameters):
        refresh: PositiveInt = 10  # epochs between new neighbours

    settings: Parameters

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        return torch.full_like(distance, epoch % self.settings.refresh == 0, dtype=torch.bool)
