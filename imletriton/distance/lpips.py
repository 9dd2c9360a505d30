"""LPIPS: the distance between the features of two images by VGG16 or another network."""

import math
import warnings
from pickle import UnpicklingError
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from imletriton.distance.base import Distance, Embedding, as_float
from imletriton.distance.feature_ops import sketched_features, unit_features
from imletriton.distance.projection import CountSketch
from imletriton.distance.weights import fetch_weights
from imletriton.errors import InputError


class LPIPS(Distance):
    """LPIPS v0.1 (Zhang et al., CVPR 2018) plus a multiple of the mean squared pixel difference.

    Args:
        backbone: The network: "vgg" as in the papers, "alex" or "squeeze".
        pixel_weight: The factor of the mean squared pixel difference.
        pretrained: Whether the network has ImageNet weights, which are downloaded on first use, or random ones. The
            linear layers of LPIPS, which are part of the lpips package, are trained in both cases.
        seed: The random seed of random weights.

    Raises:
        InputError: The weights cannot be downloaded, or their file is damaged.
    """

    def __init__(self, backbone: str, pixel_weight: float, pretrained: bool, seed: int) -> None:
        super().__init__()
        import lpips

        path = fetch_weights(backbone) if pretrained else None
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)  # lpips uses deprecated arguments of torchvision
            torch.manual_seed(seed)
            try:
                network = lpips.LPIPS(net=backbone, pnet_rand=not pretrained, verbose=False)
            except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError) as error:
                raise InputError(f"{path} does not hold the {backbone} weights: remove it and try again.") from error
        self.network, self.scale = network.net, network.scaling_layer
        for i, linear in enumerate(network.lins):
            weight = rearrange(linear.model[-1].weight.detach(), "1 c 1 1 -> c").clamp_min(0).sqrt()
            self.register_buffer(f"weight{i}", weight, persistent=False)
        self.pixel_weight = pixel_weight
        self.requires_grad_(False).eval()

    def use_bfloat16(self) -> None:
        """Convert the weights of the network to bfloat16."""
        self.network.to(dtype=torch.bfloat16, memory_format=torch.channels_last)

    def target(self, points: Tensor, embedding: Embedding | None = None) -> Embedding:
        """Return the features in the network's dtype; the pixels stay in float32."""
        pixels, *features = super().target(points, embedding)
        dtype = next(self.network.parameters()).dtype
        return pixels, *(part.to(dtype) for part in features)

    def row_length(self, part: int, projection_dim: int) -> int:
        """Return a multiple of the number of channels, if one fits, so that no position is split over two rows."""
        channels = len(getattr(self, f"weight{part - 1}")) if part else projection_dim
        return projection_dim // channels * channels or projection_dim

    def embed(self, points: Tensor) -> Embedding:
        """Return the scaled pixels, and the LPIPS features of each layer."""
        pixels, layers = self._layers(points)
        return pixels, *(unit_features(layer, weight) for layer, weight in layers)

    def _sketches(self, points: Tensor) -> list[Tensor]:
        pixels, layers = self._layers(points)
        first, *rest = (cast(CountSketch, sketch) for sketch in self.projections)
        return [first(pixels), *(sketched_features(*layer, s) for layer, s in zip(layers, rest, strict=True))]

    def _layers(self, points: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Compute the scaled pixels, and the network's feature maps with the weights of their channels."""
        images = as_float(points).contiguous(memory_format=torch.channels_last)
        pixels = rearrange(images * math.sqrt(self.pixel_weight / images[0].numel()), "b c h w -> b (c h w)")
        layers = self.network(self.scale(images).to(next(self.network.parameters()).dtype))
        weights = (getattr(self, f"weight{i}") / math.sqrt(x[0, 0].numel()) for i, x in enumerate(layers))
        return pixels, list(zip(layers, weights, strict=True))
