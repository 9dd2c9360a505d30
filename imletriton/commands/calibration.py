"""Calibration: how far styles are spread, so that samples differ from each other as much as the data do.

A generator learns the mean, or the median, of all the data that a latent code is trained towards. So its samples lie
closer together than the data, and the less well it is trained, the closer: with less difference between their colours,
for instance. Spreading the styles about their centre (`Generator.style`) gives back what was lost, without training.
"""

import torch
from torch import Tensor

from imletriton.generator import latent_codes
from imletriton.metrics import frechet_distance
from imletriton.metrics.random_features import random_features
from imletriton.trainer import Trainer

SAMPLES = 256  # of the same latent codes for each spread, so that what differs is the spread alone
POINTS = 1000  # data points that they are compared with, at most
BATCH = 16  # samples made at once
STREAM = 2**31 + 1  # of random numbers: that of no draw of a pool
FEATURE_SEEDS = range(1000, 1004)  # of the random convolutions, of several networks, as no two judge alike
STEP, LARGEST = 0.1, 3.0  # between the spreads that are tried; the largest one


@torch.no_grad()
def calibrate(trainer: Trainer) -> float:
    """Set the centre and the spread of the averaged weights.

    From where it is, the spread goes on in steps of STEP, up or down, while the Frechet distance of SAMPLES samples to
    the data becomes less, in features of random convolutions; but not below 1. All processes of the trainer's group
    must call this together; each of them makes its share of the samples. Training does not depend on it, and no random
    number is drawn.

    Returns:
        The spread.
    """
    model = trainer.ema
    if len(trainer.points) < 2:  # which do not differ
        return 1.0
    codes = latent_codes(0, SAMPLES, model.latent_dim, seed=trainer.settings.seed, stream=STREAM).to(trainer.device)
    model.centre.copy_(model.mapping(codes).mean(0))
    data = _features(trainer.points[:: -(-len(trainer.points) // POINTS)])

    def distance(spread: float) -> float:
        model.spread.fill_(spread)
        batches = codes.split(BATCH)
        mine = trainer.group.share(len(batches))
        features = data.new_zeros(len(batches), BATCH, data.shape[1])
        for k in range(mine.start, mine.stop):
            with trainer.autocast():
                samples: Tensor = model(batches[k])
            features[k] = _features(samples.float().clamp(-1, 1))
        found = trainer.group.complete(features.flatten(1)).view(SAMPLES, -1)
        return frechet_distance(found, data) if found.isfinite().all() else torch.inf

    best = round(float(model.spread), 1)
    least = distance(best)

    def is_nearer(spread: float) -> bool:
        nonlocal least
        found = distance(spread)
        nearer = trainer.group.any(trainer.group.writes and found < least, trainer.device)  # one decides for all
        least = found if nearer else least
        return nearer

    for step in (STEP, -STEP):
        while 1 <= (tried := round(best + step, 1)) <= LARGEST and is_nearer(tried):
            best = tried
    model.spread.fill_(best)
    return best


def _features(images: Tensor) -> Tensor:
    return torch.cat([random_features(images, seed) for seed in FEATURE_SEEDS], 1)
