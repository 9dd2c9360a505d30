"""The baseline: RS-IMLE's training loop, rewritten to work as its authors' published code does, at their settings.

It runs eagerly in float32, with feature maps in NCHW. A decoder block upsamples at its start, and gain and bias are
applied to the three colour channels. Pools are computed in batches of 16. The LPIPS features of each layer are
projected by a dense random matrix of their own; the 800 dimensions are distributed in proportion to the sizes of the
layers. Each step computes the features of its targets again. Once an epoch the distances of all data points are
computed again, in batches of 4. Every result is copied to the host.

Two things that the published code does are left out: it computes all distances a second time after each epoch, only to
log them, and it starts processes that load data.
"""

import copy
from typing import Any

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from imletriton.distance import as_float
from imletriton.generator import Generator
from imletriton.sections import TrainConfig

POOL_BATCH = 16  # samples of a pool generated at once, and data points searched for at once
PIXEL_WEIGHT = 0.1


class PlainGenerator(nn.Module):
    """The papers' network, built from the modules of a `Generator`.

    Args:
        generator: The generator, whose modules are taken. Its gain and bias must have their initial values, 1 and 0.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        decoder: Any = generator.decoder
        self.mapping: nn.Module = generator.mapping
        self.constant: Tensor = decoder.constant
        self.blocks: nn.ModuleList = decoder.blocks
        parts = (every.chunk(len(self.blocks)) for every in (decoder.styles.weight, decoder.styles.bias))
        self.styles = nn.ModuleList(_linear(*part) for part in zip(*parts, strict=True))  # a layer for each block
        self.to_rgb: nn.Module = decoder.to_rgb
        self.gain = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Generate images, float32 [b, 3, H, W], from latent codes [b, latent_dim]."""
        w = self.mapping(z)
        x = repeat(self.constant, "1 c h w -> b c h w", b=len(z))
        block: Any
        for block, style in zip(self.blocks, self.styles, strict=True):
            if block.factor > 1:
                x = F.interpolate(x, scale_factor=block.factor)
            if block.normalise:
                x = F.instance_norm(x, eps=1e-2)
            scale, shift = rearrange(style(w), "b (two c) -> two b c 1 1", two=2)
            x = scale * x + shift
            out = x
            for conv in block.convs:
                out = conv(F.gelu(out))
            x = x + out
        rgb: Tensor = self.gain * self.to_rgb(x) + self.bias
        return rgb


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


class PlainLoop:
    """The training loop of IMLE, with LPIPS by the features of a random VGG16.

    Args:
        points: The images to train on, uint8 [n, 3, H, W].
        generator: The generator, which is copied.
        settings: The section `train` of a recipe.
        projection_dim: The number of dimensions of the search features.
        device: The device that computes.
    """

    def __init__(
        self, points: Tensor, generator: Generator, settings: TrainConfig, projection_dim: int, device: torch.device
    ) -> None:
        self.device, self.settings = device, settings
        self.points = as_float(points)  # kept on the host
        self.generator = PlainGenerator(copy.deepcopy(generator))
        self.generator.to(device).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).to(device).requires_grad_(False)
        self.weights = [lin.model[-1].weight.clamp_min(0).sqrt() for lin in self.lpips.lins]
        sizes = [layer.shape[1] for layer in self._layers(self.points[:1].to(device))[0]]
        dims = [size * projection_dim // sum(sizes) for size in sizes[:-1]]
        dims.append(projection_dim - sum(dims))
        self.projections = [torch.randn(size, dim, device=device) for size, dim in zip(sizes, dims, strict=True)]
        for matrix in self.projections:
            matrix /= torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        parts = self.points.split(settings.batch_size)
        self.data = torch.cat([self._projected(part.to(device)).cpu() for part in parts])
        self.latents = torch.zeros(len(points), generator.latent_dim)

    @torch.no_grad()
    def draw(self, m: int) -> tuple[Tensor, Tensor]:
        """Draw a pool of m samples.

        Returns:
            The latent codes, float32 [m, latent_dim], and the search features, float32 [m, projection_dim], both on the
            host.
        """
        z = torch.randn(m, self.latents.shape[1])
        pool = torch.empty(m, self.data.shape[1])
        for latents, features in zip(z.split(POOL_BATCH), pool.split(POOL_BATCH), strict=True):
            features[:] = self._projected(self.generator(latents.to(self.device)))
        return z, pool

    def select(self, z: Tensor, pool: Tensor) -> None:
        """Assign to each data point the latent code of its nearest sample in a pool."""
        for data, latents in zip(self.data.split(POOL_BATCH), self.latents.split(POOL_BATCH), strict=True):
            latents[:] = z[torch.cdist(data, pool).argmin(1)]

    def epoch(self) -> float:
        """Measure the distances of all data points, then train on each of them once; return the mean loss."""
        self._measure()
        losses = []
        batches = zip(*(part.split(self.settings.batch_size) for part in (self.points, self.latents)), strict=True)
        for points, latents in batches:  # the published code does not shuffle them
            self.generator.zero_grad()
            loss = self._distance(self.generator(latents.to(self.device)), points.to(self.device)).mean()
            loss.backward()
            self.optimizer.step()
            for average, current in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                average.data.mul_(self.settings.ema)
                average.data.add_(current.data * (1 - self.settings.ema))
            losses.append(loss.item())
        return float(np.mean(losses))

    @torch.no_grad()
    def _measure(self) -> Tensor:
        """Compute d(x_i, T(z*_i)) of all data points, float32 [n], on the host."""
        batches = zip(*(part.split(self.settings.batch_size) for part in (self.points, self.latents)), strict=True)
        return torch.cat(
            [self._distance(self.generator(z.to(self.device)), x.to(self.device)).cpu() for x, z in batches]
        )

    def _distance(self, samples: Tensor, target: Tensor) -> Tensor:
        """Compute the distance d of each pair of a sample and a target, both float [b, 3, H, W]: float32 [b]."""
        features, sides = self._layers(samples)
        targets, _ = self._layers(target)
        parts = [(a - b).square().sum(1) / side**2 for a, b, side in zip(features, targets, sides, strict=True)]
        return sum(parts) + PIXEL_WEIGHT * (samples - target).square().mean((1, 2, 3))

    def _layers(self, images: Tensor) -> tuple[list[Tensor], list[int]]:
        """Compute the LPIPS features of each layer, float32 [b, D], and the side of each layer's feature maps."""
        layers = self.lpips.net(self.lpips.scaling_layer(images))
        weighted = [w * lpips.normalize_tensor(layer) for layer, w in zip(layers, self.weights, strict=True)]
        return [rearrange(layer, "b c h w -> b (c h w)") for layer in weighted], [layer.shape[-1] for layer in layers]

    @torch.no_grad()
    def _projected(self, images: Tensor) -> Tensor:
        """Compute the search features of images, float32 [b, projection_dim], scaled to length 1."""
        layers, _ = self._layers(images)
        return F.normalize(torch.cat([x @ matrix for x, matrix in zip(layers, self.projections, strict=True)], 1))
