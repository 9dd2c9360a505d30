"""The mapping network of the papers, as StyleGAN has it (Karras et al., CVPR 2019)."""

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2)) over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


class MLPMapping(nn.Sequential):
    """Latent code z [b, latent_dim] -> style w [b, latent_dim]: pixel norm, then linear layers with leaky ReLU."""

    def __init__(self, latent_dim: int, layers: int) -> None:
        super().__init__(PixelNorm())
        for _ in range(layers):
            linear = nn.Linear(latent_dim, latent_dim)
            # PyTorch's default shrinks the signal layer by layer: after eight, every z would map to one w.
            nn.init.kaiming_normal_(linear.weight, a=0.2)
            nn.init.zeros_(linear.bias)
            self.extend([linear, nn.LeakyReLU(0.2)])
