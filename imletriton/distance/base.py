"""The papers' distance d(x, y): a differentiable loss for training, and features for the nearest-neighbour search.

A distance embeds data points into one or several flat tensors. The squared Euclidean distances between these tensors
add up to d. The search uses a random projection of the same embedding, or of the pixels, to few dimensions.
"""

import itertools
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imletriton.distance.efficientnet import EfficientNet
from imletriton.distance.projection import CountSketch
from imletriton.system.resampling import enlarge

ENERGY_FLOOR = 1e-4  # added to the mean square of a band
CHARBONNIER = 2**-8  # below this difference of pixels, which range from -1 to 1, the loss is nearly a square
NETWORK_SEED = 77  # of the untrained network of `Bands`; differs from those of calibration and benchmarks.quality
Embedding = tuple[Tensor, ...]  # the parts of an embedding, each float32 [b, D] with its own D


def as_float(points: Tensor) -> Tensor:
    """Convert uint8 images [b, 3, H, W] to float32 in [-1, 1]; return other data unchanged."""
    return points.float().div(127.5).sub(1) if points.dtype == torch.uint8 else points


def random_kernels(seed: int) -> list[Tensor]:
    """Draw three convolutions of 3x3 pixels, from 3 to 32, 64 and 128 channels, as in He et al. (2015)."""
    rng = torch.Generator().manual_seed(seed)
    channels = itertools.pairwise((3, 32, 64, 128))
    return [
        torch.randn(outputs, inputs, 3, 3, generator=rng) * (2 / (9 * inputs)) ** 0.5 for inputs, outputs in channels
    ]


class Distance(nn.Module, ABC):
    """A distance d(x, y) = sum over the parts p of ||embed(x)_p - embed(y)_p||^2. Subclasses define `embed`.

    A subclass whose `loss` is another function of the embeddings is still searched by this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList()
        self.search, self.normalize = "features", False

    def prepare(self, shape: tuple[int, ...], projection_dim: int, search: str, normalize: bool, seed: int) -> None:
        """Set up the projection to the space in which nearest neighbours are searched.

        Args:
            shape: The shape of one data point.
            projection_dim: The number of dimensions to project to, if there are more.
            search: What to compare: "features" for the embedding, "pixels" for the data points themselves.
            normalize: Whether to scale search features to length 1, so that a radius such as RS-IMLE's epsilon does not
                depend on their scale.
            seed: The random seed of the projection.
        """
        self.search, self.normalize = search, normalize
        with torch.no_grad():
            sizes = [part.shape[1] for part in self._parts(torch.zeros(1, *shape))]
        if sum(sizes) > projection_dim:
            self.projections = nn.ModuleList()
            for i, size in enumerate(sizes):
                row = self.row_length(i, projection_dim) if search == "features" else projection_dim
                self.projections.append(CountSketch(size, projection_dim, seed * 1000 + i, row))

    def use_bfloat16(self) -> None:
        """Convert frozen weights to bfloat16, so that autocast need not convert them in every call."""

    def target(self, points: Tensor, embedding: Embedding | None = None) -> Embedding:
        """Compute what `loss` compares samples with, as compact as its accuracy allows.

        Args:
            points: The data points, uint8 or float [b, ...].
            embedding: Their embedding, if it is known.

        Returns:
            The parts of the embedding, and whatever else the loss compares; each [b, D].
        """
        return self.embed(points) if embedding is None else embedding

    def row_length(self, part: int, projection_dim: int) -> int:
        """Return the length of the rows in which `CountSketch` projects a part of the embedding."""
        return projection_dim

    @abstractmethod
    def embed(self, points: Tensor) -> Embedding:
        """Embed points, uint8 or float [b, ...], as parts, each float32 [b, D], whose squared distances add up to d."""

    @torch.no_grad()
    def features(self, points: Tensor, embedding: Embedding | None = None) -> Tensor:
        """Compute the features of data points in which nearest neighbours are searched.

        Args:
            points: uint8 or float [b, ...].
            embedding: The embedding of the points, if it is known.

        Returns:
            float32 [b, projection_dim], or fewer dimensions if nothing is projected. The squared Euclidean distance
            between features estimates d (or that between the pixels), unless they are scaled to length 1.
        """
        if not self.projections:
            features = torch.cat(self._parts(points, embedding), 1)
        elif self.search == "features" and embedding is None:
            features = torch.stack(self._sketches(points)).sum(0)
        else:
            features = torch.stack(self._projected(self._parts(points, embedding))).sum(0)
        return F.normalize(features) if self.normalize else features

    def _parts(self, points: Tensor, embedding: Embedding | None = None) -> Embedding:
        """Return the embedding, or the pixels, before the projection."""
        if self.search == "pixels":
            return (rearrange(as_float(points), "b ... -> b (...)"),)
        return self.embed(points) if embedding is None else embedding

    def _projected(self, parts: Embedding) -> list[Tensor]:
        """Project each part of an embedding."""
        return [sketch(part) for sketch, part in zip(self.projections, parts, strict=True)]

    def _sketches(self, points: Tensor) -> list[Tensor]:
        """Embed data points and project each part of the embedding."""
        return self._projected(self.embed(points))

    def loss(self, samples: Tensor, target: Tensor | Embedding) -> Tensor:
        """Compute d(sample, target), float32 [b]; gradients flow to the samples only.

        Args:
            samples: [b, ...].
            target: The data points, [b, ...], or what `target` computes from them.
        """
        if isinstance(target, Tensor):
            with torch.no_grad():
                target = self.target(target)
        return _sq_distance(self.embed(samples), target)


class Euclidean(Distance):
    """The squared Euclidean distance between the data points themselves."""

    def embed(self, points: Tensor) -> Embedding:
        """Flatten the data points to one part, float32 [b, D]."""
        return (rearrange(as_float(points), "b ... -> b (...)"),)


class Pixels(Distance):
    """The mean squared pixel difference, averaged over an image pyramid that ends at a side of 4 to 7 pixels.

    Images with the same layout are close at the coarse scales even if their details, at the finest scale, differ.
    """

    def embed(self, points: Tensor) -> Embedding:
        """Return one part for each scale, float32 [b, 3 * side^2], scaled so that d is the average over the scales."""
        levels = [as_float(points)]
        while levels[-1].shape[-1] >= 8:
            levels.append(F.avg_pool2d(levels[-1], 2))
        scaled = (x / math.sqrt(x[0].numel() * len(levels)) for x in levels)
        return tuple(rearrange(x, "b c h w -> b (c h w)") for x in scaled)


class Bands(Pixels):
    """A robust difference of the frequency bands of two images, and of the local energy of each band.

    A band is a level of the image pyramid minus the next coarser one, enlarged (the Laplacian pyramid of Burt and
    Adelson, 1983); the coarsest level is left as it is. The distance is the mean of three kinds of differences:

    - of the coarsest level, which alone has the colours of large areas: the mean over its pixels of the Charbonnier
      difference sqrt(difference^2 + c^2) - c with c = 1/256. It counts twice.
    - of each band: the same.
    - of each band's local energy, the root of the mean of band^2 in windows of 4x4 pixels, two pixels apart: the mean
      absolute difference. In levels of 64 pixels or more, the band is averaged over 2x2 neighbouring pixels first.

    The Charbonnier difference is smallest at a median, a squared one at a blurred mean. But where details vary in
    position, the median has no details at all; the energies penalise a missing detail, wherever in its window it would
    be (docs/quality.md). The easiest pattern with energy alternates from pixel to pixel: jagged outlines, grids of fine
    lines. Averaging over 2x2 pixels removes such patterns and keeps edges; it has not been tried on smaller levels.

    With a `network_weight`, a fourth difference is added: of the features of a network, compared as in LPIPS (Zhang et
    al., CVPR 2018, equation 1, without its learned weights). The features of each layer are scaled to length 1 at each
    position; squared differences are summed over channels and averaged over positions, then over layers. The network
    sees which details are next to each other, so textures and edges come out right. It is either

    - "untrained": three random convolutions of 3x3 pixels with stride 2, each followed by a ReLU, or
    - "efficientnet": the first layers of EfficientNet-Lite0, trained on ImageNet; see `EfficientNet`.

    Neighbours are searched as for `Pixels`.

    Args:
        network_weight: The factor of the network's difference; 0 leaves it out.
        network: "untrained" or "efficientnet".

    Raises:
        InputError: The weights of "efficientnet" are not installed.
    """

    coarsest_weight, energy_weight = 2.0, 1.0
    window = 4  # pixels
    smoothed_from = 64  # pixels: bands of this side or more are averaged before their energy is computed
    strides = 2, 2, 2  # of the untrained network's convolutions

    def __init__(self, network_weight: float = 0.0, network: str = "untrained") -> None:
        super().__init__()
        self.network_weight = network_weight
        self.trained = EfficientNet() if network_weight and network == "efficientnet" else None
        for k, kernel in enumerate(random_kernels(NETWORK_SEED)):
            self.register_buffer(f"kernel{k}", kernel, persistent=False)

    def target(self, points: Tensor, embedding: Embedding | None = None) -> Embedding:
        """Return the embedding, and the network's features if there is a `network_weight`."""
        return *super().target(points, embedding), *self._network_features(points)

    def loss(self, samples: Tensor, target: Tensor | Embedding) -> Tensor:
        if isinstance(target, Tensor):
            with torch.no_grad():
                target = self.target(target)
        embedding = self.embed(samples)
        ours, theirs = (self._levels(x, samples.shape) for x in (embedding, target[: len(embedding)]))
        total, weights = self.coarsest_weight * _charbonnier(ours[-1] - theirs[-1]), self.coarsest_weight
        for x, y in zip(_bands(ours), _bands(theirs), strict=True):
            energies = (self._local_energy(x) - self._local_energy(y)).abs().mean((1, 2, 3))
            total = total + _charbonnier(x - y) + self.energy_weight * energies
            weights += 1 + self.energy_weight
        loss = total / weights
        if not self.network_weight:
            return loss
        return loss + self.network_weight * _sq_distance(self._network_features(samples), target[len(embedding) :])

    def _network_features(self, images: Tensor) -> Embedding:
        """Parts, float32 [b, D], whose squared distances add up to the network's difference; none without a weight."""
        maps = self._maps(as_float(images)) if self.network_weight else []
        units = (F.normalize(x.float(), dim=1, eps=1e-3) / math.sqrt(x[0, 0].numel() * len(maps)) for x in maps)
        return tuple(rearrange(x, "b c h w -> b (h w c)") for x in units)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps that are compared."""
        if self.trained is not None:
            features: list[Tensor] = self.trained(images)
            return features
        maps = [images]
        for stride, kernel in zip(self.strides, self.buffers(recurse=False), strict=True):
            maps.append(F.conv2d(maps[-1], kernel, stride=stride, padding=1).relu())
        return maps[1:]

    def _levels(self, embedding: Embedding, shape: torch.Size) -> list[Tensor]:
        """The image pyramid, each level [b, c, h, w], from an embedding of images of this shape."""
        levels = []
        for scale, part in enumerate(embedding):
            x = rearrange(part, "b (c h w) -> b c h w", c=shape[1], h=shape[2] >> scale)
            levels.append(x * math.sqrt(part.shape[1] * len(embedding)))  # undo the scaling of `embed`
        return levels

    def _local_energy(self, band: Tensor) -> Tensor:
        """The root of the mean square in each window, float32 [b, c, ...]; the constant keeps gradients finite."""
        size = self.window
        if band.shape[-1] >= self.smoothed_from:
            band = F.avg_pool2d(band, 2, stride=1)
        return (F.avg_pool2d(band.square(), size, size // 2, size // 4) + ENERGY_FLOOR).sqrt()


def _sq_distance(x: Embedding, y: Embedding) -> Tensor:
    """The squared Euclidean distances between two embeddings, summed over their parts: float32 [b]."""
    return torch.stack([(a - b).square().sum(1) for a, b in zip(x, y, strict=True)]).sum(0)


def _bands(levels: list[Tensor]) -> list[Tensor]:
    """The bands of a pyramid, without the coarsest level."""
    finer = levels[:-1]
    return [x - enlarge(y, (x.shape[2], x.shape[3])) for x, y in zip(finer, levels[1:], strict=True)]


def _charbonnier(difference: Tensor) -> Tensor:
    """The mean of sqrt(difference^2 + c^2) - c over [b, c, h, w]: float32 [b] (Charbonnier et al., ICIP 1994)."""
    return (difference.square() + CHARBONNIER**2).sqrt().mean((1, 2, 3)) - CHARBONNIER
