"""Misalignment: the gap between what training selects and what the prior gives at test time (RS-IMLE, section 3.3)."""

import torch
from torch import Tensor, nn

from imletriton.search import nearest

LATENTS = 2048  # selected latents kept, the newest
PRIOR = 512  # latents of the prior that are compared with them
SAMPLES = 256  # of a pool, whose distances from the data stand for the prior's


class Misalignment(nn.Module):
    """Compares what was selected for n data points with the prior, by Kolmogorov-Smirnov distances (0: alike, to 1).

    points: search features of the data points, float32 [n, d]. pool_size: m. prior: float32 [PRIOR + LATENTS,
    latent_dim], latents as they are drawn at test time. Noting is all but free; `figures` costs a few small searches.
    """

    latents: Tensor
    owner: Tensor
    count: Tensor
    distance: Tensor
    samples: Tensor
    points: Tensor
    prior: Tensor

    def __init__(self, points: Tensor, pool_size: int, prior: Tensor) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("prior", prior, persistent=False)
        self.register_buffer("latents", torch.zeros(LATENTS, prior.shape[1]))
        self.register_buffer("owner", torch.full((LATENTS,), -1))  # the data point each was selected for; -1: none yet
        self.register_buffer("count", torch.tensor(0))  # of latents noted so far
        self.register_buffer("distance", torch.full(points.shape[:1], torch.inf))  # of each point's newest selection
        self.register_buffer("samples", torch.zeros(min(SAMPLES, pool_size), points.shape[1]))  # of the newest pool

    def note_pool(self, samples: Tensor) -> None:
        """Take note of a new pool, by its search features [m, d]."""
        self.samples.copy_(samples[: len(self.samples)])

    def note_selected(self, index: Tensor, latents: Tensor, distance: Tensor) -> None:
        """Take note of the latents [k, latent_dim] selected for points int64 [k], at search distances float32 [k]."""
        self.distance[index] = distance
        place = (self.count + torch.arange(len(index), device=index.device))[-LATENTS:] % LATENTS
        self.latents[place], self.owner[place] = latents[-LATENTS:], index[-LATENTS:]
        self.count += len(index)

    def figures(self) -> dict[str, float]:
        """What to log.

        misaligned_latents: are there regions of the prior where nothing is selected? The distance of a latent of the
            prior to its nearest selected one, against that to the nearest of as many others of the prior.
        misaligned_distances: the distance of a data point to its selected sample, against that to any sample.
        misaligned_theory: the same where the nearest of m samples is selected, by RS-IMLE's equation 3.
        random: mean distance of a sample to its nearest data point, which is what a user of the model gets.
        """
        # Empty places are infinite, which is never nearest: all searches have one size. oneDNN keeps code for each.
        empty, tests, others = self.owner[:, None] < 0, self.prior[:PRIOR], self.prior[PRIOR:]
        gaps, usual = (nearest(tests, x.masked_fill(empty, torch.inf)).sq_distance for x in (self.latents, others))
        found = {"misaligned_latents": ks_distance(gaps, usual)}
        samples = self.samples[self.samples.isfinite().all(1)]
        if len(samples):
            distances = torch.cdist(self.points, samples).sort(1).values
            steps = (nearest_of(len(samples), self.pool_size) - 1 / len(samples)).to(distances) / len(self.points)
            found["misaligned_distances"] = ks_distance(self.distance, distances.flatten())
            found["misaligned_theory"] = _largest_sum(distances.flatten(), steps.expand_as(distances).flatten())
            found["random"] = float(nearest(samples, self.points).sq_distance.sqrt().mean())
        return found


def nearest_of(s: int, m: int) -> Tensor:
    """How likely each of s samples, in the order of their distances, stands for the nearest of m: float64 [s].

    Where F is the distribution of a sample's distance, that of the nearest of m is 1 - (1 - F)^m (RS-IMLE, equation 3);
    F has s equal steps here.
    """
    survival = (1 - torch.arange(s + 1, dtype=torch.float64) / s) ** m
    return survival[:-1] - survival[1:]


def ks_distance(a: Tensor, b: Tensor) -> float:
    """The largest difference between the empirical distribution functions of [k] and [l] (Kolmogorov-Smirnov)."""
    steps = torch.cat([torch.full_like(a, 1 / len(a)), torch.full_like(b, -1 / len(b))])
    return _largest_sum(torch.cat([a, b]), steps)


def _largest_sum(values: Tensor, steps: Tensor) -> float:
    """max over t of |sum of the steps at values up to t|."""
    values, order = values.sort()
    sums = steps[order].double().cumsum(0)
    last = torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)])  # of equal values
    return float(sums[last].abs().max())
