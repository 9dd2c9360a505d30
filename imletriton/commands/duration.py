"""How long a training will take: measured before its first step, without changing anything that it depends on."""

import copy
import itertools
import time
from typing import NamedTuple

import torch

from imletriton.trainer import Trainer

FORESEEN = 1000  # epochs for which the strategy is asked when it wants pools; later ones are taken to be like these
UNITS = {"days": 86_400, "hours": 3600, "minutes": 60}  # in seconds


class Pace(NamedTuple):
    """How many seconds a training step takes, and how many the drawing of a pool."""

    step: float
    pool: float

    def to_come(self, trainer: Trainer) -> float:
        """The seconds until the last step, without those for sheets of samples, checkpoints and measuring the FID."""
        return self.step * (trainer.settings.iterations - trainer.step) + self.pool * pools_to_come(trainer)


def measure_pace(trainer: Trainer) -> Pace:
    """Measure two training steps and a chunk of a pool, after one of each to warm up. The trainer stays as it is.

    All processes of the trainer's group must call this together.
    """
    with trainer.unchanged():
        trainer.train_step()
        began = _now(trainer)
        trainer.train_step()
        trainer.train_step()
        step = (_now(trainer) - began) / 2
        chunks = trainer.pool.draw(trainer.draws)
        drawn = [(0, _now(trainer))]
        drawn += [(done, _now(trainer)) for done in itertools.islice(chunks, 2)]
    (before, began), (done, ended) = drawn[-2:] if len(drawn) > 1 else (*drawn, *drawn)
    return Pace(step, (ended - began) / max(1, done - before) * trainer.pool.size)


def _now(trainer: Trainer) -> float:
    """The time in seconds, once the device has done all its work."""
    trainer.synchronize()
    return time.perf_counter()


def pools_to_come(trainer: Trainer) -> float:
    """How many pools training will still draw; with thresholds, at most: if data points reach them as soon as they may.

    The strategy is asked for the next FORESEEN epochs.
    """
    iterations, per_epoch = trainer.settings.iterations, trainer.steps_per_epoch
    epochs = range(-(-trainer.step // per_epoch), -(-iterations // per_epoch))  # that are still to start
    strategy, distances = copy.deepcopy(trainer.strategy).cpu(), trainer.distances.cpu()
    distances = torch.where(distances.isinf(), distances, 0.0)
    pools = 0
    with torch.random.fork_rng(devices=[]):  # a strategy may draw random numbers
        for epoch in epochs[:FORESEEN]:
            due = strategy.due(epoch, distances) | distances.isinf()
            if due.any():
                if trainer.draws + pools == 0 or strategy.needs_pool(due, epoch):
                    strategy.pool_drawn(epoch)
                    pools += 1
                distances = distances.masked_fill(due, 0.0)
                strategy.latents_assigned(due, epoch, distances)
    return pools * max(1.0, len(epochs) / FORESEEN)


def in_words(seconds: float) -> str:
    """A duration as people say it, such as "about 12 minutes"."""
    unit, size = next((unit for unit in UNITS.items() if seconds >= 2 * unit[1]), ("seconds", 1))
    count = max(1, round(seconds / size))
    return f"about {count} {unit if count > 1 else unit[:-1]}"
