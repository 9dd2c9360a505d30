"""The papers' distance d(x, y): features for the search, a differentiable loss for training.

A distance embeds a batch of data points into a few flat tensors whose squared Euclidean distance, summed, is d. The
search uses the same embedding, projected to few dimensions.
"""

import math
import warnings
from abc import ABC, abstractmethod
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imletriton.errors import InputError
from imletriton.projection import CountSketch
from imletriton.weights import fetch_weights

Embedding = tuple[Tensor, ...]  # each float32 [b, D]


def as_float(points: Tensor) -> Tensor:
    """Data points as the networks see them: uint8 images in [-1, 1], anything else unchanged."""
    return points.float().div(127.5).sub(1) if points.dtype == torch.uint8 else points


class Distance(nn.Module, ABC):
    """d(x, y) = sum over parts of ||embed(x) - embed(y)||^2. Subclasses say what `embed` is.

    shape: one data point's. projection_dim: dimensions of the search space (the embedding itself where it has no
    more). normalize: bring search features to length 1, so that a radius among them is free of scale (RS-IMLE).
    """

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList()
        self.normalize = False

    def prepare(self, shape: tuple[int, ...], projection_dim: int, normalize: bool, seed: int) -> None:
        """Set up the search space for data points of a shape."""
        self.normalize = normalize
        with torch.no_grad():
            sizes = [part.shape[1] for part in self.embed(torch.zeros(1, *shape))]
        if sum(sizes) > projection_dim:
            sketches = (CountSketch(size, projection_dim, seed * 1000 + i) for i, size in enumerate(sizes))
            self.projections = nn.ModuleList(sketches)

    @abstractmethod
    def embed(self, points: Tensor) -> Embedding:
        """Data points, uint8 or float [b, ...], as flat float32 tensors whose squared distances add up to d."""

    @torch.no_grad()
    def features(self, points: Tensor | Embedding) -> Tensor:
        """Search features of data points or their embedding, float32 [b, projection_dim].

        Their squared Euclidean distance estimates d.
        """
        parts = self.embed(points) if isinstance(points, Tensor) else points
        if self.projections:
            sketches = [p(part) for p, part in zip(self.projections, parts, strict=True)]
            features = torch.stack(sketches).sum(0)
        else:
            features = torch.cat(parts, 1)
        return F.normalize(features) if self.normalize else features

    def loss(self, samples: Tensor, target: Tensor | Embedding) -> Tensor:
        """d(sample, target) for each pair, float32 [b]; target is data points or their embedding."""
        if isinstance(target, Tensor):
            with torch.no_grad():
                target = self.embed(target)
        pairs = zip(self.embed(samples), target, strict=True)
        return torch.stack([(a - b).square().sum(1) for a, b in pairs]).sum(0)


class Euclidean(Distance):
    """The squared Euclidean distance of the data points themselves."""

    def embed(self, points: Tensor) -> Embedding:
        return (as_float(points).flatten(1),)


class Pixels(Distance):
    """The mean squared pixel difference, averaged over a pyramid of scales down to 4x4. Needs no weights.

    Coarse scales bring matching layouts together before details agree; the finest keeps the details.
    """

    def embed(self, points: Tensor) -> Embedding:
        levels = [as_float(points)]
        while levels[-1].shape[-1] >= 8:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return tuple((x / math.sqrt(x[0].numel() * len(levels))).flatten(1) for x in levels)


class LPIPS(Distance):
    """LPIPS v0.1 (Zhang et al., CVPR 2018) plus pixel_weight times the mean squared pixel difference.

    backbone: vgg (as in the papers), alex or squeeze. pretrained: ImageNet weights, else random ones drawn from seed
    (the trained linear layers of LPIPS come with the lpips package either way).
    """

    def __init__(self, backbone: str, pixel_weight: float, pretrained: bool, seed: int) -> None:
        super().__init__()
        import lpips

        path = fetch_weights(backbone) if pretrained else None
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)  # lpips speaks an older torchvision
            torch.manual_seed(seed)
            try:
                network = lpips.LPIPS(net=backbone, pnet_rand=not pretrained, verbose=False)
            except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError) as error:
                raise InputError(f"{path} does not hold the {backbone} weights: remove it and try again.") from error
        self.network, self.scale = network.net, network.scaling_layer
        for i, lin in enumerate(network.lins):
            weight = lin.model[-1].weight.detach().clamp_min(0).sqrt()
            self.register_buffer(f"weight{i}", weight, persistent=False)
        self.pixel_weight = pixel_weight
        self.requires_grad_(False).eval()

    def embed(self, points: Tensor) -> Embedding:
        images = as_float(points).contiguous(memory_format=torch.channels_last)
        layers = self.network(self.scale(images))
        parts = [(images * math.sqrt(self.pixel_weight / images[0].numel())).flatten(1)]
        for i, layer in enumerate(layers):
            layer = layer.float()
            # lpips divides by the norm plus 1e-10, whose gradient is NaN where a position is all zero.
            inverse = layer.square().sum(1, keepdim=True).clamp_min(1e-20).rsqrt()
            weight = getattr(self, f"weight{i}") / math.sqrt(layer[0, 0].numel())
            parts.append((layer * (inverse * weight)).flatten(1))
        return tuple(parts)


def make_distance(
    shape: tuple[int, ...],
    *,
    kind: str,
    backbone: str,
    weights: str,
    pixel_weight: float,
    projection_dim: int,
    normalize: bool,
    seed: int,
) -> Distance:
    """The distance of a recipe's [distance] section, for data points of a shape."""
    distance: Distance
    if kind == "lpips":
        distance = LPIPS(backbone, pixel_weight, weights == "pretrained", seed)
    else:
        distance = {"pixels": Pixels, "euclidean": Euclidean}[kind]()
    distance.prepare(shape, projection_dim, normalize, seed)
    return distance
