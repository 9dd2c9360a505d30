"""The papers' distance d(x, y): features for the search, a differentiable loss for training.

A distance embeds a batch of data points into a few flat tensors whose squared Euclidean distance, summed, is d. The
search uses the same embedding, or the pixels alone, projected to few dimensions.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imletriton.distance.projection import CountSketch

Embedding = tuple[Tensor, ...]  # each float32 [b, D]


def as_float(points: Tensor) -> Tensor:
    """Data points as the networks see them: uint8 images in [-1, 1], anything else unchanged."""
    return points.float().div(127.5).sub(1) if points.dtype == torch.uint8 else points


class Distance(nn.Module, ABC):
    """d(x, y) = sum over parts of ||embed(x) - embed(y)||^2. Subclasses say what `embed` is."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList()
        self.search, self.normalize = "features", False

    def prepare(self, shape: tuple[int, ...], projection_dim: int, search: str, normalize: bool, seed: int) -> None:
        """Set up the search space for data points of a shape.

        projection_dim: its dimensions; what is searched stays as it is where it has no more. search: "features", the
        embedding, or "pixels", the data points themselves. normalize: bring search features to length 1, so that a
        radius among them is free of scale (RS-IMLE).
        """
        self.search, self.normalize = search, normalize
        with torch.no_grad():
            sizes = [part.shape[1] for part in self._parts(torch.zeros(1, *shape))]
        if sum(sizes) > projection_dim:
            rows = (self.row(i, projection_dim) if search == "features" else projection_dim for i in range(len(sizes)))
            sketches = (
                CountSketch(size, projection_dim, seed * 1000 + i, row)
                for i, (size, row) in enumerate(zip(sizes, rows, strict=True))
            )
            self.projections = nn.ModuleList(sketches)

    def use_bfloat16(self) -> None:
        """Hold frozen weights in bfloat16: autocast would cast them at each call."""

    def row(self, part: int, projection_dim: int) -> int:
        """Coordinates of a part of the embedding that its projection moves together."""
        return projection_dim

    @abstractmethod
    def embed(self, points: Tensor) -> Embedding:
        """Data points, uint8 or float [b, ...], as flat float32 tensors whose squared distances add up to d."""

    @torch.no_grad()
    def features(self, points: Tensor, embedding: Embedding | None = None) -> Tensor:
        """Search features of data points, float32 [b, projection_dim]; embedding: theirs, where it is known already.

        Their squared Euclidean distance estimates d, or that of the pixels.
        """
        if not self.projections:
            features = torch.cat(self._parts(points, embedding), 1)
        elif self.search == "features" and embedding is None:
            features = torch.stack(self._sketches(points)).sum(0)
        else:
            features = torch.stack(self._projected(self._parts(points, embedding))).sum(0)
        return F.normalize(features) if self.normalize else features

    def _parts(self, points: Tensor, embedding: Embedding | None = None) -> Embedding:
        """What is searched, before it is projected."""
        if self.search == "pixels":
            return (rearrange(as_float(points), "b ... -> b (...)"),)
        return self.embed(points) if embedding is None else embedding

    def _projected(self, parts: Embedding) -> list[Tensor]:
        return [sketch(part) for sketch, part in zip(self.projections, parts, strict=True)]

    def _sketches(self, points: Tensor) -> list[Tensor]:
        """Each part of the embedding of data points, projected."""
        return self._projected(self.embed(points))

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
        return (rearrange(as_float(points), "b ... -> b (...)"),)


class Pixels(Distance):
    """The mean squared pixel difference, averaged over a pyramid of scales down to 4x4. Needs no weights.

    Coarse scales bring matching layouts together before details agree; the finest keeps the details.
    """

    def embed(self, points: Tensor) -> Embedding:
        levels = [as_float(points)]
        while levels[-1].shape[-1] >= 8:
            levels.append(F.avg_pool2d(levels[-1], 2))
        scaled = (x / math.sqrt(x[0].numel() * len(levels)) for x in levels)
        return tuple(rearrange(x, "b c h w -> b (c h w)") for x in scaled)
