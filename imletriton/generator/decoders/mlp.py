"""A decoder for points in the plane."""

import itertools

from torch import Tensor, nn


class MLPDecoder(nn.Sequential):
    """Style w [b, style_dim] -> points in the plane, float32 [b, 2]: three hidden layers of the given width."""

    def __init__(self, style_dim: int, width: int, blocks: str, bottleneck: float) -> None:
        widths = [style_dim, width, width, width]
        layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.GELU())]
        super().__init__(*layers, nn.Linear(width, 2))
        self.shape = (2,)

    def forward(self, w: Tensor) -> Tensor:
        for layer in self:
            w = layer(w)
        return w.float()

    @staticmethod
    def at_rest(samples: Tensor) -> Tensor:
        """Points stay as they are."""
        return samples
