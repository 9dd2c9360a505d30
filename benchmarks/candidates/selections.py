"""Ways of searching and of assigning samples that were tried in the place of RS-IMLE's."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from imletriton.training.trainer import Trainer


class AveragedSelection(Trainer):
    """Draws the pools from the averaged weights, which is what will be used in the end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pool.generator = self.ema


class KeptPools(Trainer):
    """Takes the same latent codes for several pools, whose samples are made anew each time."""

    def __init__(self, *arguments: Any, times: int) -> None:
        super().__init__(*arguments)
        draw = self.pool.draw
        self.pool.draw = lambda number: draw(number // times)  # type: ignore[method-assign]


class Reassigned(Trainer, ABC):
    """Assigns once more what a round has selected, as a subclass decides."""

    @torch.no_grad()
    def _select(self, due: Tensor) -> None:
        super()._select(due)
        index = due.nonzero()[:, 0]
        self.assigned[index] = self.pool.latents_at(self.choose(index))
        self.distances[index] = self._measure(index)

    @abstractmethod
    def choose(self, index: Tensor) -> Tensor:
        """The pool's samples for the data points at index, int64 [k]."""

    @property
    def radius(self) -> float:
        return self.strategy.reject_radius(self.pool.points, self.pool.prepared)

    def admissible(self, index: Tensor) -> Tensor:
        """The distances of the data points at index from the pool's samples, float32 [k, m]; inf where rejected."""
        distance = torch.cdist(self.features, self.pool.features)
        return distance[index].masked_fill(distance.amin(0) < self.radius, torch.inf)


class OneOfThree(Reassigned):
    """Takes one of the three nearest samples of each data point at random, so that more of the pool is used."""

    def choose(self, index: Tensor) -> Tensor:
        nearest = self.admissible(index).topk(3, largest=False).indices
        rng = torch.Generator().manual_seed(self.rounds)
        return nearest[range(len(index)), torch.randint(3, (len(index),), generator=rng)]


class OwnRadius(Reassigned):
    """Gives each data point a radius in proportion to its distance from the nearest other one."""

    def choose(self, index: Tensor) -> Tensor:
        others = torch.cdist(self.features, self.features).fill_diagonal_(torch.inf).amin(1)
        distance = torch.cdist(self.features, self.pool.features)
        radii = self.radius * others / others.mean()
        return distance[index].masked_fill((distance < radii[:, None]).any(0), torch.inf).argmin(1)


class SoftTopK(Reassigned):
    """In each step, takes one of the three nearest samples of a data point; the nearer, the more probable.

    In the mean over the steps, this is the gradient of a soft minimum: weights exp(-d_k / t), where t is the mean of
    d_3 - d_1.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.near, self.odds = self.assigned[:, None].repeat(1, 3, 1), torch.ones(self.n, 3)

    def choose(self, index: Tensor) -> Tensor:
        distance, nearest = self.admissible(index).topk(3, largest=False)
        gap = distance - distance[:, :1]
        self.near[index] = self.pool.latents_at(nearest.flatten()).view(*nearest.shape, -1)
        self.odds[index] = (-gap / gap[:, 2].mean()).exp()
        return nearest[:, 0]

    def train_step(self) -> None:
        batch, rng = self._batch(), torch.Generator().manual_seed(self.step)
        taken = torch.multinomial(self.odds[batch], 1, generator=rng)[:, 0]
        self.assigned[batch] = self.near[batch, taken]
        super().train_step()


class ReversePairs(Trainer):
    """Also trains samples of the pool that are near already, each towards the data point that it is assigned to.

    The whole pool is assigned in equal shares, by dual potentials (optimal transport with a little entropy), and the
    nearer half of the pairs is used, two in a batch of eight. Their weight falls from `weight` to 0 by the last step.
    """

    def __init__(self, *arguments: Any, weight: float) -> None:
        super().__init__(*arguments)
        self.weight = weight
        self.pairs = self.assigned.clone(), torch.arange(self.n)  # latent codes and data points

    @torch.no_grad()
    def _select(self, due: Tensor) -> None:
        super()._select(due)
        sample, point = self.pair()
        self.pairs = self.pool.latents_at(sample), point

    def pair(self) -> tuple[Tensor, Tensor]:
        """Samples of the pool and the data points that they are assigned to, int64 [k]."""
        cost = torch.cdist(self.pool.features, self.features).square().double()
        cost, potentials = cost / cost.mean(), torch.zeros(self.n, dtype=torch.float64)
        for _ in range(100):  # Sinkhorn's iterations, with 0.02 as the weight of the entropy
            own = 0.02 * ((potentials - cost) / 0.02).logsumexp(1)
            potentials = -0.02 * ((-own[:, None] - cost) / 0.02).logsumexp(0)
        point = (cost - potentials).argmin(1)
        nearer = cost[range(len(cost)), point].argsort()[: len(cost) // 2]
        return nearer, point[nearer]

    def _advance(self) -> None:
        latents, points = self.pairs
        taken = torch.randint(len(points), (self.batch // 4,), generator=torch.Generator().manual_seed(self.step))
        self.forget_gradients()
        with self.autocast():
            losses = self.losses(self.index)
            reverse = self.distance.loss(self.working(latents[taken]), self.points[points[taken]])
        (losses.mean() + self.weight * self.left * reverse.mean()).backward()
        self._update(losses.detach())

    @property
    def left(self) -> float:
        """The share of the steps that is still to come."""
        return 1 - self.step / self.settings.iterations


class NearPairs(ReversePairs):
    """The same without potentials: a sample goes to its nearest data point, of which each takes its five nearest."""

    def pair(self) -> tuple[Tensor, Tensor]:
        distance, point = torch.cdist(self.pool.features, self.features).min(1)
        order = distance.argsort()
        order = order[point[order].argsort(stable=True)]  # by data point, then by distance
        first = torch.searchsorted(point[order], point[order])
        sample = order[torch.arange(len(order)) - first < 5]
        return sample, point[sample]


class AlternatingPairs(NearPairs):
    """The same pairs, in the place of others: a data point in a batch has one of its own instead of z*, or not.

    It has one with the probability `weight`, which falls to 0 by the last step.
    """

    def _losses(self, index: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(self.step)
        latents, points = self.pairs
        z = self.assigned[index].clone()
        for k, point in enumerate(index.tolist()):
            own = (points == point).nonzero()[:, 0]
            if len(own) and float(torch.rand((), generator=rng)) < self.weight * self.left:
                z[k] = latents[own[torch.randint(len(own), (), generator=rng)]]
        return self.distance.loss(self.working(z), self.points[index])

    def _advance(self) -> None:
        Trainer._advance(self)


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
