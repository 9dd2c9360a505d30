"""What was tried for better pictures and is not in the package: trainers for benchmarks.quality.

Each is here in the form in which docs/quality.md reports it, so that its runs can be made again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from imletriton.distance import as_float
from imletriton.generator import latent_codes
from imletriton.trainer import Trainer

RANDOM = 10**6  # the random stream of latent codes that are no candidates of a pool
PLACES, FILTERS, SIDE, QUEUE = 256, 4, 5, 56  # of LocalTransport


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


class LocalSearch(Trainer):
    """Searches on around the selected latent codes, as hierarchical IMLE does: of `tries` small changes, the best."""

    def __init__(self, *arguments: Any, tries: int, distance_of_tries: float = 0.3) -> None:
        super().__init__(*arguments)
        self.tries, self.spread = tries, distance_of_tries

    @torch.no_grad()
    def _select(self, due: Tensor) -> None:
        super()._select(due)
        radius = self.strategy.reject_radius(self.pool.points, self.pool.prepared)
        index, rng = due.nonzero()[:, 0], torch.Generator().manual_seed(self.rounds)
        best = self.assigned[index]
        least = self._search_distance(best, index, 0.0)
        for _ in range(self.tries):
            noise = torch.randn(best.shape, generator=rng)
            z = math.sqrt(1 - self.spread**2) * best + self.spread * noise
            distance = self._search_distance(z, index, radius)
            nearer = distance < least
            best, least = torch.where(nearer[:, None], z, best), torch.where(nearer, distance, least)
        self.assigned[index] = best
        self.distances[index] = self._measure(index)

    def _search_distance(self, z: Tensor, index: Tensor, radius: float) -> Tensor:
        """Between the samples of z and their data points; inf where the radius rejects a sample."""
        with self.autocast():
            features = torch.cat([self.distance.features(self.working(part)) for part in z.split(64)])
        rejected = torch.cdist(features, self.features).amin(1) < radius
        return (features - self.features[index]).norm(dim=1).masked_fill(rejected, torch.inf)


class OneOfThree(Trainer):
    """Takes one of the three nearest samples of each data point at random, so that more of the pool is used."""

    @torch.no_grad()
    def _select(self, due: Tensor) -> None:
        super()._select(due)
        index, rng = due.nonzero()[:, 0], torch.Generator().manual_seed(self.rounds)
        radius = self.strategy.reject_radius(self.pool.points, self.pool.prepared)
        distance = torch.cdist(self.features[index], self.pool.features)
        distance[:, torch.cdist(self.pool.features, self.features).amin(1) < radius] = torch.inf
        nearest = distance.topk(3, largest=False).indices
        self.assigned[index] = self.pool.latents_at(
            nearest[range(len(index)), torch.randint(3, (len(index),), generator=rng)]
        )
        self.distances[index] = self._measure(index)


class Muon(Trainer):
    """Steps of equal size in all directions for the matrices and convolutions (Muon); AdamW for the rest."""

    def __init__(self, *arguments: Any, rate: float) -> None:
        super().__init__(*arguments)
        self.rate = rate
        self.matrices = [w for w in self.weights if w.ndim > 1 and min(w.shape[0], w[0].numel()) >= 16]
        chosen = {id(w) for w in self.matrices}
        self.momenta = [torch.zeros_like(w) for w in self.matrices]
        group = self.optimizer.param_groups[0]
        group["params"] = [w for w in group["params"] if id(w) not in chosen]

    def _update(self, my_losses: Tensor) -> None:
        self._gradients()
        rate = self.rate * float(self.learning_rate) / self.settings.learning_rate
        for weight, momentum in zip(self.matrices, self.momenta, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.05)
            direction = weight.grad.lerp(momentum, 0.95).flatten(1)
            step = _orthogonal(direction) * max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
            with torch.no_grad():
                weight.add_(step.view(weight.shape), alpha=-rate)
        super()._update(my_losses)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about, by five Newton-Schulz steps with Muon's coefficients."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


class FadingRate(Trainer):
    """Lets the learning rate fall to zero over the last share of the steps."""

    def __init__(self, *arguments: Any, share: float) -> None:
        super().__init__(*arguments)
        self.share, self.full = share, self.settings

    def train_step(self) -> None:
        left = (1 - self.step / self.full.iterations) / self.share
        self.settings = self.full.model_copy(update={"learning_rate": self.full.learning_rate * min(1.0, left)})
        super().train_step()


class WeighedEnergies(Trainer):
    """Gives the local energies of `bands` another weight; 0 leaves them out, as the first form of `bands` did."""

    def __init__(self, *arguments: Any, weight: float) -> None:
        points, generator, distance, *others = arguments
        distance.energy_weight = weight
        super().__init__(points, generator, distance, *others)


def _bands(images: Tensor) -> list[Tensor]:
    """The Laplacian pyramid, to a side of 4 to 7 pixels."""
    levels = [images]
    while levels[-1].shape[-1] >= 8:
        levels.append(F.avg_pool2d(levels[-1], 2))
    enlarged = [F.interpolate(x, y.shape[2:], mode="bilinear") for x, y in zip(levels[1:], levels, strict=False)]
    return [x - y for x, y in zip(levels, enlarged, strict=False)] + levels[-1:]


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "local transport 0.1": partial(LocalTransport, weight=0.1),
    "local transport 0.3": partial(LocalTransport, weight=0.3),
    "local search": partial(LocalSearch, tries=8),
    "one of three": OneOfThree,
    "muon": partial(Muon, rate=0.02),
    "fading rate": partial(FadingRate, share=0.3),
    "no energies": partial(WeighedEnergies, weight=0.0),
    "first bands": partial(WeighedEnergies, weight=0.0),
    "twice the energies": partial(WeighedEnergies, weight=2.0),
    "papers' decoder, twice the energies": partial(WeighedEnergies, weight=2.0),
}
