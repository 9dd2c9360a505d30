"""How good samples are, compared with pictures that training never saw and with those that it saw.

All are computed in fixed features: the channel means of random convolutions of several seeds, so that no method fits
one of them by luck.
"""

import math
import statistics

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from imletriton.distance import as_float
from imletriton.metrics import authenticity, frechet_distance, precision_recall
from imletriton.metrics.manifolds import kth_distance
from imletriton.metrics.random_features import random_features
from imletriton.search import nearest, within

FEATURE_SEEDS = (0, 1, 2)
NEIGHBOUR = 3  # the k of precision, recall, density and coverage


def density_coverage(samples: Tensor, data: Tensor, k: int = NEIGHBOUR) -> tuple[float, float]:
    """Compute density and coverage (Naeem et al., ICML 2020, equations 3 and 4).

    Density is how many of the balls about data points, whose radii are the distances to their k-th nearest other point,
    a sample lies in, divided by k. Coverage is the share of the data points whose ball holds a sample.

    Args:
        samples: Features, [m, d].
        data: Features, [n, d].
        k: Which neighbour gives the radius.

    Returns:
        Density, which may be above 1, and coverage, from 0 to 1.
    """
    radius = kth_distance(data, k)
    density = float(within(samples, data, radius).count.double().mean()) / k
    return density, float((nearest(data, samples).sq_distance.double().sqrt() <= radius).double().mean())


def octaves(images: Tensor) -> list[float]:
    """The mean energy of images in each octave of spatial frequency, from the coarsest to the finest.

    Args:
        images: uint8 [n, 3, S, S].

    Returns:
        One value for the frequencies 1 to 2 cycles per image, 2 to 4, and so on up to S / 2.
    """
    side, energy = images.shape[-1], torch.zeros(())
    for part in images.split(500):
        grey = reduce(as_float(part), "n c h w -> n h w", "mean")
        energy = energy + torch.fft.fft2(grey).abs().square().sum(0)
    cycles = torch.fft.fftfreq(side, 1 / side)
    radius = (cycles[:, None].square() + cycles[None].square()).sqrt()
    bands = [2**k for k in range(int(math.log2(side)))]
    return [float(energy[(radius >= low) & (radius < 2 * low)].mean()) / len(images) for low in bands]


def with_faults(images: Tensor) -> dict[str, Tensor]:
    """Images, uint8 [n, 3, S, S], with faults that are known, so that one sees which of them the figures react to."""
    x, rng = images.float(), torch.Generator().manual_seed(0)
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    changed = {
        "blurred by 3x3 pixels": F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3),
        "noise of 2 of 255 levels": x + 2 * torch.randn(x.shape, generator=rng),
        "5 of 255 levels lighter": x + 5,
    }
    return {name: x.round().clamp(0, 255).byte() for name, x in changed.items()}


def compared(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Frechet distance, precision, recall, density and coverage of features, [m, d], against the truth's, [n, d]."""
    precision, recall = precision_recall(ours, theirs, NEIGHBOUR)
    density, coverage = density_coverage(ours, theirs)
    found = {"frechet": frechet_distance(ours, theirs), "precision": precision, "recall": recall}
    return found | {"density": density, "coverage": coverage}


def against_truth(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Measure samples against pictures that training never saw: the means over several random networks.

    Args:
        samples: uint8 [m, 3, S, S].
        truth: uint8 [n, 3, S, S].

    Returns:
        Frechet distance, precision, recall, density and coverage; and the mean distance from a true picture to its
        nearest sample, as `distance_apart` has it.
    """
    figures: dict[str, list[float]] = {}
    for seed in FEATURE_SEEDS:
        for name, value in compared(random_features(samples, seed), random_features(truth, seed)).items():
            figures.setdefault(name, []).append(value)
    means = {name: statistics.fmean(values) for name, values in figures.items()}
    return means | {"truth_to_sample": distance_apart(truth, samples)}


def against_training(samples: Tensor, training: Tensor) -> dict[str, float]:
    """Measure samples against the pictures that were trained on.

    Args:
        samples: uint8 [m, 3, S, S].
        training: uint8 [n, 3, S, S].

    Returns:
        The share of samples nearer to a training picture than half of the mean distance between such pictures and
        their nearest others; the mean distance from a sample to its nearest training picture; the share of training
        pictures with such a near sample; and the authenticity, in random features.
    """
    data, queries = _values(training), _values(samples)
    neighbours = nearest(queries, data)
    near = neighbours.sq_distance.sqrt() < float(kth_distance(data, 1).mean()) / 2
    reached = neighbours.index[near].bincount(minlength=len(data)) > 0
    return {
        "near": float(near.double().mean()),
        "sample_to_training": distance_apart(samples, training),
        "reached": float(reached.double().mean()),
        "authenticity": authenticity(random_features(samples), random_features(training)),
    }


def distance_apart(queries: Tensor, others: Tensor) -> float:
    """The mean distance from each query to the nearest of others: the root of the mean square difference of pixels."""
    found = nearest(_values(queries), _values(others)).sq_distance / queries[0].numel()
    return float(found.sqrt().double().mean())


def _values(images: Tensor) -> Tensor:
    return rearrange(images, "n c h w -> n (c h w)").float() / 255
