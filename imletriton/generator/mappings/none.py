"""No mapping network."""

from torch import nn


class NoMapping(nn.Identity):
    """w = z: for data so small that the decoder alone bends the prior."""
