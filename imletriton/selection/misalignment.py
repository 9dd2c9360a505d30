"""Misalignment: how much the latents that training selects differ from the prior (RS-IMLE, section 3.3)."""

import torch
from torch import Tensor, nn

from imletriton.search import nearest

LATENTS = 2048  # selected latents that are kept, the newest ones
PRIOR = 512  # latents of the prior that they are compared with
SAMPLES = 256  # samples of a pool that represent the prior
POINTS = 2048  # data points whose distances from them are measured, at most


class Misalignment(nn.Module):
    """Compares the selection for n data points with the prior, by Kolmogorov-Smirnov distances.

    Such a distance is 0 if two distributions are the same, and 1 if they do not overlap. `metrics` costs a few small
    searches, everything else hardly anything.

    Args:
        points: Search features of the data points, float32 [n, d].
        pool_size: The number of samples in a pool, m.
        prior: Latents of the prior, float32 [PRIOR + LATENTS, latent_dim].
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
        self.register_buffer("owner", torch.full((LATENTS,), -1))  # the data point of each latent; -1: none yet
        self.register_buffer("count", torch.tensor(0))  # of latents recorded so far
        self.register_buffer("distance", torch.full(points.shape[:1], torch.inf))  # of each point's newest selection
        self.register_buffer("samples", torch.zeros(min(SAMPLES, pool_size), points.shape[1]))  # of the newest pool

    def note_pool(self, samples: Tensor) -> None:
        """Record a new pool, by its search features, float32 [m, d]."""
        self.samples.copy_(samples[: len(self.samples)])

    def note_selected(self, index: Tensor, latents: Tensor, distance: Tensor) -> None:
        """Record the selection of a round.

        Args:
            index: The data points that got a new latent, int64 [k].
            latents: The new latents, float32 [k, latent_dim].
            distance: Their distances in the search space, float32 [k].
        """
        self.distance[index] = distance
        rows = (self.count + torch.arange(len(index), device=index.device))[-LATENTS:] % LATENTS
        self.latents[rows], self.owner[rows] = latents[-LATENTS:], index[-LATENTS:]
        self.count += len(index)

    def metrics(self) -> dict[str, float]:
        """Compare the selection with the prior.

        Returns:
            misaligned_latents: Whether there are regions of the prior where nothing is selected. Compares the distance
                from a latent of the prior to the nearest selected one with that to the nearest of as many latents of
                the prior.
            misaligned_distances: Compares the distance of a data point to its selected sample with that to any sample.
            misaligned_theory: What misaligned_distances would be if the nearest of m samples were selected, by
                RS-IMLE's equation 3.
            random: Mean distance of a sample to its nearest data point.

            The last three are missing if no sample of the newest pool is finite.
        """
        # Unused rows are infinite, so they are never the nearest. Without them, searches would have many different
        # sizes, and oneDNN keeps code for each size.
        unused, tests, others = self.owner[:, None] < 0, self.prior[:PRIOR], self.prior[PRIOR:]
        gaps, usual = (nearest(tests, x.masked_fill(unused, torch.inf)).sq_distance for x in (self.latents, others))
        metrics = {"misaligned_latents": ks_distance(gaps, usual)}
        samples = self.samples[self.samples.isfinite().all(1)]
        if len(samples):
            points = self.points[:: -(-len(self.points) // POINTS)]
            distances = torch.cdist(points, samples).sort(1).values
            steps = (nearest_of(len(samples), self.pool_size) - 1 / len(samples)).to(distances) / len(points)
            metrics["misaligned_distances"] = ks_distance(self.distance, distances.flatten())
            metrics["misaligned_theory"] = _largest_sum(distances.flatten(), steps.expand_as(distances).flatten())
            metrics["random"] = float(nearest(samples, self.points).sq_distance.sqrt().mean())
        return metrics


def nearest_of(s: int, m: int) -> Tensor:
    """The probabilities, float64 [s], of s distances in ascending order to be that of the nearest of m samples.

    If F is the distribution of a sample's distance, the distance of the nearest of m is distributed as 1 - (1 - F)^m
    (RS-IMLE, equation 3). Here F has s equal steps.
    """
    survival = (1 - torch.arange(s + 1, dtype=torch.float64) / s) ** m
    return survival[:-1] - survival[1:]


def ks_distance(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of values [k] and [l]: the largest difference of their distribution functions."""
    steps = torch.cat([torch.full_like(a, 1 / len(a)), torch.full_like(b, -1 / len(b))])
    return _largest_sum(torch.cat([a, b]), steps)


def _largest_sum(values: Tensor, steps: Tensor) -> float:
    """The maximum over t of |sum of the steps whose values are at most t|."""
    values, order = values.sort()
    sums = steps[order].double().cumsum(0)
    # Of several equal values, only the last one has the whole sum.
    last = torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)])
    return float(sums[last].abs().max())
