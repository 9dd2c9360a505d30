"""The mapping network of the papers, which is StyleGAN's (Karras et al., CVPR 2019)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from imletriton.generator.mappings.base import Mapping
from imletriton.generator.parameters import MLPMappingParameters


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-8), with the mean over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


class MLPMapping(Mapping):
    """Pixel norm, then `mapping_layers` times a linear layer of dimension latent_dim and a leaky ReLU."""

    name = "mlp"
    Parameters = MLPMappingParameters

    def __init__(self, latent_dim: int, settings: MLPMappingParameters) -> None:
        super().__init__(latent_dim, settings)
        layers: list[nn.Module] = [PixelNorm()]
        for _ in range(settings.mapping_layers):
            linear = nn.Linear(latent_dim, latent_dim)
            # PyTorch's default initialisation shrinks the signal in each layer: after eight, w hardly depends on z.
            nn.init.kaiming_normal_(linear.weight, a=0.2)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(0.2)]
        for number, layer in enumerate(layers):  # their names in checkpoints
            self.add_module(str(number), layer)

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.children():
            z = layer(z)
        return z

    def autocast_layers(self) -> Iterable[nn.Module]:
        return [layer for layer in self.children() if isinstance(layer, nn.Linear)]
