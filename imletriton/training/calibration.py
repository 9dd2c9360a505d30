"""Calibration: give the samples of a trained model the colours and the variety of the data.

A generator learns the mean, or the median, of the data that a latent code is trained towards. So its samples have less
contrast than the data and lie closer together, especially early in training, and their mean colours are a few levels
off. Spreading the styles about their centre (`Generator.style`) and scaling and shifting each colour channel
(`Generator.decode`) makes up for that, without training.
"""

import torch
from torch import Tensor

from imletriton.distance import as_float
from imletriton.generator import latent_codes
from imletriton.metrics import frechet_distance
from imletriton.metrics.random_features import random_features
from imletriton.training.memory import BATCH
from imletriton.training.trainer import Trainer

SAMPLES = 256  # of the same latent codes for each spread, so that what differs is the spread alone
POINTS = 1000  # data points that they are compared with, at most
STREAM = 2**31 + 1  # of random numbers: that of no draw of a pool
FEATURE_SEEDS = range(1000, 1004)  # of the random convolutions, of several networks, as no two judge alike
STEP, LARGEST = 0.1, 3.0  # between the spreads that are tried; the largest one
CONTRASTS = 0.5, 2.0  # the least and the largest: samples without any contrast have none to be stretched


@torch.no_grad()
def calibrate(trainer: Trainer) -> float:
    """Set the centre, the spread, the contrast and the brightness of the averaged weights.

    At each spread, contrast and brightness give the colour channels of SAMPLES samples the mean and the standard
    deviation that those of the data have. From where it is, the spread goes on in steps of STEP, up or down, while the
    Frechet distance of these samples to the data becomes less, in features of random convolutions; but not below 1. All
    processes of the trainer's group must call this together; each of them makes its share of the samples. Training does
    not depend on it, and no random number is drawn.

    Returns:
        The spread.
    """
    model, group = trainer.ema, trainer.group
    if len(trainer.points) < 2:  # which do not differ
        return 1.0
    codes = _codes(model.latent_dim, trainer.settings.seed).to(trainer.device)
    model.centre.copy_(model.mapping(codes).mean(0))
    points = trainer.points[:: -(-len(trainer.points) // POINTS)]
    data, data_moments = _features(points), torch.cat([_moments(part) for part in points.split(BATCH)])
    data_mean, data_deviation = _colours(data_moments)
    batches = codes.split(BATCH)
    mine = group.share(len(batches))

    def tried(spread: float) -> tuple[float, float, Tensor, Tensor]:
        """The Frechet distance at a spread, and the spread, the contrast and the brightness that it was found with."""
        model.spread.fill_(spread)
        model.contrast.fill_(1)
        model.brightness.fill_(0)
        moments, samples = data.new_zeros(len(batches), BATCH, 2, data_mean.numel()), list[Tensor]()
        for k in range(mine.start, mine.stop):
            with trainer.autocast():
                made = model(batches[k]).float().clamp(-1, 1)
            moments[k] = _moments(made)
            samples.append(model.decoder.at_rest(made))  # a quarter of the memory
        moments = group.complete(moments.flatten(1)).view(SAMPLES, 2, -1)
        mean, deviation = _colours(moments)
        # NaN: that of samples that are not finite, or of a channel of one value both in the samples and in the data.
        contrast = (data_deviation / deviation).nan_to_num(1.0).clamp(*CONTRASTS)
        brightness = (data_mean - contrast * mean).nan_to_num(0.0)
        contrast, brightness = (x.view_as(model.contrast) for x in (contrast, brightness))
        features = data.new_zeros(len(batches), BATCH, data.shape[1])
        for k, made in zip(range(mine.start, mine.stop), samples, strict=True):
            features[k] = _features(torch.addcmul(brightness, contrast, as_float(made)).clamp(-1, 1))
        found = group.complete(features.flatten(1)).view(SAMPLES, -1)
        distance = frechet_distance(found, data) if moments.isfinite().all() else torch.inf
        return distance, spread, contrast, brightness

    best = tried(round(float(model.spread), 1))
    for step in (STEP, -STEP):
        while 1 <= (spread := round(best[1] + step, 1)) <= LARGEST:
            found = tried(spread)
            if not group.any(group.writes and found[0] < best[0], trainer.device):  # one decides for all
                break
            best = found
    _, spread, contrast, brightness = best
    model.spread.fill_(spread)
    model.contrast.copy_(contrast)
    model.brightness.copy_(brightness)
    return spread


def _codes(dim: int, seed: int) -> Tensor:
    """SAMPLES latent codes, float32 [SAMPLES, dim], whose mean samples differ less from those of all latent codes.

    A Latin hypercube (McKay, Beckman, Conover 1979): of each coordinate, one value lies in each of SAMPLES intervals of
    equal probability. Mean colours then have half the error of independent codes.
    """
    ranks = latent_codes(0, SAMPLES, dim, seed=seed, stream=STREAM).argsort(0).argsort(0)
    codes: Tensor = torch.special.ndtri((ranks + 0.5) / SAMPLES)
    return codes


def _moments(images: Tensor) -> Tensor:
    """The mean of the values and of their squares in each channel of each image: [n, 2, channels]."""
    values = as_float(images).flatten(2)
    return torch.stack([values.mean(2), values.square().mean(2)], 1)


def _colours(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each channel, float32 [channels], from the moments of images."""
    mean, square = moments.double().mean(0)
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


def _features(images: Tensor) -> Tensor:
    return torch.cat([random_features(images, seed) for seed in FEATURE_SEEDS], 1)
