"""Vanilla IMLE (Li and Malik, arXiv 1809.09087; Algorithm 1 of Adaptive IMLE)."""

import torch
from torch import Tensor

from imletriton.selection.base import Strategy
from imletriton.selection.parameters import VanillaParameters


class Vanilla(Strategy):
    """Every `refresh` epochs, a new pool is drawn and every data point takes its nearest sample from it.

    With a `share` below 1, this is spread over several rounds, each of which refreshes a part of the data points from a
    smaller pool of its own. Neighbours in the folder, which are often alike, are in different parts.
    """

    name = "vanilla"
    Parameters = VanillaParameters
    settings: VanillaParameters

    def due(self, epoch: int, distance: Tensor) -> Tensor:
        refresh, rounds = self.settings.refresh, self.settings.rounds
        part = torch.arange(self.n, device=distance.device) % rounds
        return part * refresh // rounds == epoch % refresh
