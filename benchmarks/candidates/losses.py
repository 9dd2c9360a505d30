"""Losses that were tried in the place of `bands`, or beside it."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from imletriton.distance import Bands, Distance, Embedding, as_float
from imletriton.generator import Generator, latent_codes
from imletriton.training.trainer import Trainer

RANDOM = 10**6  # the random stream of latent codes that are no candidates of a pool
PLACES, FILTERS, SIDE, QUEUE = 256, 4, 5, 56  # of LocalTransport


class ChangedDistance(Trainer):
    """Gives attributes of the distance other values."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        points, generator, distance, *others = arguments
        for name, value in attributes.items():
            assert hasattr(distance, name)
            setattr(distance, name, value)
        super().__init__(points, generator, distance, *others)


class BandsInSearch(Bands):
    """Is searched by the frequency bands and their energies too, not by the pixels of the pyramid."""

    @torch.no_grad()
    def features(self, points: Tensor, embedding: Embedding | None = None) -> Tensor:
        """All that `loss` compares, without a projection: the squared Euclidean distance has the weights of `loss`."""
        *bands, coarsest = _bands(as_float(points))
        parts = [(self.coarsest_weight, coarsest)]
        for band in bands:
            parts += [(1.0, band), (self.energy_weight, self._local_energy(band))]
        return torch.cat([part.flatten(1) * math.sqrt(weight / part[0].numel()) for weight, part in parts], 1)


class SearchByBands(Trainer):
    """Keeps the search in step with the loss."""

    def __init__(self, points: Tensor, generator: Generator, distance: Distance, *others: Any) -> None:
        del distance
        super().__init__(points, generator, BandsInSearch(), *others)


class EqualContrast(Trainer):
    """Divides each picture's loss by its contrast, so that pale pictures count as much as others."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        points = as_float(self.points)
        details = points - F.interpolate(F.avg_pool2d(points, 4), points.shape[2:], mode="bilinear")
        contrast = details.square().mean((1, 2, 3)).sqrt()
        self.share = contrast.mean() / contrast

    def _losses(self, index: Tensor) -> Tensor:
        return super()._losses(index) * self.share[index]


class AddedLoss(Trainer, ABC):
    """Adds `weight` times a further term, which subclasses define, to the loss of `bands`."""

    def __init__(self, *arguments: Any, weight: float) -> None:
        super().__init__(*arguments)
        self.weight = weight

    def _losses(self, index: Tensor) -> Tensor:
        samples, points = self.working(self.assigned[index]).float(), as_float(self.points[index])
        target = tuple(part[index] for part in self.targets) if self.targets else points
        return self.distance.loss(samples, target) + self.weight * self.term(samples, points)

    @abstractmethod
    def term(self, samples: Tensor, points: Tensor) -> Tensor:
        """float32 [b], of images in [-1, 1], float32 [b, 3, H, W]."""


class GradientTerm(AddedLoss):
    """The Charbonnier difference of the pictures' horizontal and vertical gradients."""

    def term(self, samples: Tensor, points: Tensor) -> Tensor:
        error = samples - points
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        return torch.stack([(x.square() + 2**-16).sqrt().mean((1, 2, 3)) for x in (across, down)]).mean(0)


class LocalTransport(Trainer):
    """Adds random samples to each batch, whose local details shall be distributed as those of the data.

    Random filters look at each place of each band of the Laplacian pyramid. At each place, a sample's response is
    pulled to the quantile of the data's responses that has the rank of the sample's among recent samples: a sliced
    Wasserstein distance of neighbourhoods, place by place. The recent samples make the ranks fine enough; without
    them, a batch of 8 would shrink what it spreads.
    """

    def __init__(self, *arguments: Any, weight: float) -> None:
        super().__init__(*arguments)
        self.weight, self.recent = weight, torch.empty(0)
        self.data_bands = _bands(as_float(self.points))

    def _advance(self) -> None:
        self.forget_gradients()
        with self.autocast():
            losses = self.losses(self.index)
            first = self.step * self.batch
            z = latent_codes(first, first + self.batch, self.assigned.shape[1], seed=self.settings.seed, stream=RANDOM)
            samples = self.working(z).float()
        (losses.mean() + self.weight * self._transport(samples)).backward()
        self._update(losses.detach())

    def _transport(self, samples: Tensor) -> Tensor:
        known = torch.cat([samples, self.recent]) if len(self.recent) else samples
        self.recent = known.detach()[:QUEUE]
        rng = torch.Generator().manual_seed(self.step)
        rank_of = (torch.arange(len(known)) + 0.5) / len(known) * self.n - 0.5
        low = rank_of.clamp(0, self.n - 1).floor().long()
        share, high = rank_of.clamp(0, self.n - 1) - low, (low + 1).clamp(max=self.n - 1)
        bands, total = _bands(known), samples.new_zeros(())
        for ours, theirs in zip(bands, self.data_bands, strict=True):
            side = min(SIDE, ours.shape[-1])
            filters = torch.randn(FILTERS, 3, side, side, generator=rng)
            filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None] * math.sqrt(side)
            seen, wanted = (rearrange(F.conv2d(x, filters), "b f h w -> (f h w) b") for x in (ours, theirs))
            places = torch.randperm(len(seen), generator=rng)[:PLACES]
            seen, wanted = seen[places], wanted[places].sort(1).values
            mine = seen[:, : len(samples)]
            with torch.no_grad():
                rank = (seen[:, None] < mine[:, :, None]).sum(2)
                target = (wanted[:, low] + share * (wanted[:, high] - wanted[:, low])).gather(1, rank)
            total = total + ((mine - target).square() + 2**-16).sqrt().mean()
        return total / len(bands)


def _bands(images: Tensor) -> list[Tensor]:
    """The Laplacian pyramid, to a side of 4 to 7 pixels."""
    levels = [images]
    while levels[-1].shape[-1] >= 8:
        levels.append(F.avg_pool2d(levels[-1], 2))
    enlarged = [F.interpolate(x, y.shape[2:], mode="bilinear") for x, y in zip(levels[1:], levels, strict=False)]
    return [x - y for x, y in zip(levels, enlarged, strict=False)] + levels[-1:]
