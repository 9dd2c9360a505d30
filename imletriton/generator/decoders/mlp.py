"""A decoder for points in the plane."""

import itertools
from collections.abc import Iterable

from torch import Tensor, nn

from imletriton.generator.decoders.base import Decoder
from imletriton.generator.parameters import MLPDecoderParameters


class MLPDecoder(Decoder):
    """Points in the plane, float32 [b, 2], by three hidden layers of `width` units with GELU."""

    name = "mlp"
    Parameters = MLPDecoderParameters

    def __init__(self, style_dim: int, settings: MLPDecoderParameters) -> None:
        super().__init__(style_dim, settings)
        self.width = settings.width
        pairs = itertools.pairwise([style_dim, self.width, self.width, self.width])
        layers = [m for inputs, outputs in pairs for m in (nn.Linear(inputs, outputs), nn.GELU())]
        for number, layer in enumerate([*layers, nn.Linear(self.width, 2)]):  # their names in checkpoints
            self.add_module(str(number), layer)

    def forward(self, w: Tensor) -> Tensor:
        for layer in self.children():
            w = layer(w)
        return w.float()

    def autocast_layers(self) -> Iterable[nn.Module]:
        return self.children()
