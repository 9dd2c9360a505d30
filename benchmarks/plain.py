"""The plain reference: the same training as published code runs it, without any of this project's short cuts.

Eager float32; a dense random projection of the features; the targets' features made anew at each step; after each epoch
the distances of all points measured anew; every result copied to the host where it is made.
"""

import copy

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import as_float
from imletriton.generator import Generator
from imletriton.recipe import Train


def plain_forward(generator: Generator, z: Tensor) -> Tensor:
    """T(z) as the papers write it: PyTorch's instance norm, images laid out as they come."""
    decoder, w = generator.decoder, generator.mapping(z)
    x = decoder.constant.repeat(len(z), 1, 1, 1)
    for block in decoder.blocks:
        if block.factor > 1:
            x = F.interpolate(x, scale_factor=block.factor, mode="nearest")
        if block.adain.normalise:
            x = F.instance_norm(x, eps=1e-2)
        scale, shift = block.adain.style(w)[:, :, None, None].chunk(2, dim=1)
        x = scale * x + shift
        out = x
        for conv in block.convs:
            out = conv(F.gelu(out))
        x = x + out
    return decoder.to_rgb(decoder.gain * x + decoder.bias)


class PlainLoop:
    """Vanilla IMLE over data points uint8 [n, 3, H, W], with LPIPS by random VGG16 features; settings as a recipe's."""

    def __init__(
        self, points: Tensor, generator: Generator, settings: Train, projection_dim: int, device: torch.device
    ) -> None:
        self.device, self.settings = device, settings
        self.points = as_float(points)  # on the host
        self.generator = copy.deepcopy(generator).to(device).float()
        self.ema = copy.deepcopy(self.generator)
        self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).to(device).requires_grad_(False)
        size = len(self._flat(self.points[:1])[0])
        self.projection = torch.randn(size, projection_dim, device=device) / projection_dim**0.5
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=settings.learning_rate, betas=settings.betas, foreach=False
        )
        self.data = self._features(self.points)
        self.latents = torch.zeros(len(points), generator.latent_dim)

    @torch.no_grad()
    def draw(self, m: int) -> tuple[Tensor, np.ndarray]:
        """A pool: latents [m, latent_dim] and search features [m, d], on the host."""
        z, found = torch.randn(m, self.generator.latent_dim), []
        for part in z.split(self.settings.batch_size):
            images = plain_forward(self.generator, part.to(self.device))
            found.append(self._features(images.cpu()))
        return z, np.concatenate(found)

    def select(self, z: Tensor, pool: np.ndarray) -> None:
        """Each data point's nearest sample."""
        self.latents = z[torch.cdist(torch.from_numpy(self.data), torch.from_numpy(pool)).argmin(1)]

    def epoch(self) -> float:
        """Train on each point once, then measure all of them; the mean loss."""
        losses = []
        for index in torch.randperm(len(self.points)).split(self.settings.batch_size):
            target = self.points[index].to(self.device)
            loss = self._distance(plain_forward(self.generator, self.latents[index].to(self.device)), target).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                for mean, new in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                    mean.mul_(self.settings.ema).add_(new, alpha=1 - self.settings.ema)
        with torch.no_grad():
            for i in range(len(self.points)):
                sample = plain_forward(self.generator, self.latents[i : i + 1].to(self.device))
                self._distance(sample, self.points[i : i + 1].to(self.device)).item()
        return float(np.mean(losses))

    def _distance(self, samples: Tensor, target: Tensor) -> Tensor:
        return self.lpips(samples, target)[:, 0, 0, 0] + 0.1 * (samples - target).square().mean((1, 2, 3))

    def _flat(self, images: Tensor) -> Tensor:
        """LPIPS features whose squared distances add up to LPIPS, float32 [b, D]."""
        layers = self.lpips.net(self.lpips.scaling_layer(images.to(self.device)))
        weighted = [
            lpips.normalize_tensor(layer) * (lin.model[-1].weight.clamp_min(0).sqrt() / layer[0, 0].numel() ** 0.5)
            for layer, lin in zip(layers, self.lpips.lins, strict=True)
        ]
        return torch.cat([layer.flatten(1) for layer in weighted], 1)

    @torch.no_grad()
    def _features(self, images: Tensor) -> np.ndarray:
        parts = images.split(self.settings.batch_size)
        return np.concatenate([(self._flat(part) @ self.projection).cpu().numpy() for part in parts])
