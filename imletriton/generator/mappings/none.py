"""No mapping network."""

from torch import Tensor

from imletriton.generator.mappings.base import Mapping
from imletriton.generator.parameters import NoMappingParameters


class NoMapping(Mapping):
    """w = z: for data so simple that the decoder can shape the prior alone."""

    name = "none"
    Parameters = NoMappingParameters

    def forward(self, z: Tensor) -> Tensor:
        return z
