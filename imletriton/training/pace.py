"""How long a training will take, how fast it is, and when it ends."""

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from imletriton.recipe import Recipe
from imletriton.selection.parameters import VanillaParameters
from imletriton.training.state import unchanged
from imletriton.training.trainer import Trainer

FORESEEN = 1000  # epochs for which the strategy is asked when it wants pools; later ones are taken to be like these
LEAVING = 1.0, 0.015  # from the last checkpoint to the end of the process, in seconds and as a share of all the time
UNITS = {"days": 86_400, "hours": 3600, "minutes": 60}  # in seconds


class Pace(NamedTuple):
    """Seconds for a training step, and for drawing a pool."""

    step: float
    pool: float

    def to_come(self, trainer: Trainer) -> float:
        """Seconds until the last step, not counting sheets of samples, checkpoints and FID measurements."""
        return self.step * (trainer.settings.iterations - trainer.step) + self.pool * pools_to_come(trainer)


def measure_pace(trainer: Trainer) -> Pace:
    """Time two training steps and a chunk of a pool, after one of each to warm up. The trainer is left unchanged.

    All processes of the trainer's group must call this together.
    """
    with unchanged(trainer):
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
    """How many pools training will still draw; with thresholds, an upper bound: as if each were reached at once.

    The strategy is asked about the next FORESEEN epochs.
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


def outlook(pace: Pace, trainer: Trainer, recipe: Recipe) -> str:
    """A sentence on the time to come."""
    ahead = in_words(pace.to_come(trainer))
    without = ", not counting FID measurements" if recipe.log.fid_every else ""
    pool = f"; the first pool takes {in_words(pace.pool)}" if trainer.draws == 0 else ""
    return f"{ahead.capitalize()} left{without}{pool}."


def smaller_rounds(pace: Pace, trainer: Trainer) -> str | None:
    """Advice to draw smaller pools, where drawing one takes longer than the steps until the next; otherwise None."""
    settings = trainer.strategy.settings
    if not isinstance(settings, VanillaParameters) or settings.share < 1:
        return None
    steps = min(settings.refresh * trainer.steps_per_epoch, trainer.settings.iterations)
    rounds = min(settings.refresh, trainer.pool.size // trainer.n)  # so that a pool still has n samples
    if rounds == 1 or pace.pool <= steps * pace.step:
        return None
    return (
        f"Drawing a pool takes longer than the {steps} steps that use it. In a new run, "
        f"selection.share={math.ceil(1e4 / rounds) / 1e4} would draw pools of 1/{rounds} the size {rounds} times as "
        "often, so that training starts sooner."
    )


class TrainingClock:
    """Measures the speed of training steps alone, without pools, searches, sheets and measurements."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._restart()

    def _restart(self) -> None:
        self.began, self.step = time.perf_counter(), self.trainer.step
        self.excluded = -self.trainer.selection_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        began = time.perf_counter()
        yield
        self.excluded += time.perf_counter() - began

    def take_images_per_s(self) -> float:
        """Training images a second since last asked."""
        seconds = time.perf_counter() - self.began - self.excluded - self.trainer.selection_seconds
        rate = (self.trainer.step - self.step) * self.trainer.batch / seconds
        self._restart()
        return rate


class StepLimit:
    """Ends a training after a number of steps, which a recipe gives.

    Args:
        steps: That number.
        outlook: A sentence on the time to come.
    """

    timed = False

    def __init__(self, steps: int, outlook: str) -> None:
        self.last_step: float = steps
        self.outlook = outlook

    def reached(self, trainer: Trainer, together: bool) -> bool:
        """Whether the step that was just done is the last one."""
        return trainer.step >= self.last_step

    def total(self, trainer: Trainer, planned: int) -> int:
        """How many steps there will be in all."""
        return planned

    def writing(self) -> AbstractContextManager[object]:
        """A context for what is written after a step."""
        return contextlib.nullcontext()


class Deadline:
    """Ends a training when its time is up, with its last sheet of samples and its last checkpoint written by then.

    Args:
        seconds: The time that is left, from now on.
    """

    timed = True
    last_step = math.inf

    def __init__(self, seconds: float) -> None:
        self.ends = time.perf_counter() + seconds - LEAVING[0] - LEAVING[1] * seconds
        self.slowest_write = 0.0  # seconds
        self.began: tuple[float, int] | None = None  # the end of a step, by the clock, and its number

    @property
    def outlook(self) -> str:
        """A sentence on the time to come."""
        return f"Training stops in {in_words(max(0.0, self.ends - time.perf_counter()))}, however many steps that is."

    def reached(self, trainer: Trainer, together: bool) -> bool:
        """Whether there is no time for what comes after this step, be it a step, or a pool and a step.

        Args:
            trainer: The trainer.
            together: Whether all processes of a group ask now. Where they do not, the answer is no.
        """
        if trainer.group.size > 1 and not together:
            return False
        return trainer.group.any(trainer.group.writes and self._is_up(trainer), trainer.device)  # one decides for all

    def _is_up(self, trainer: Trainer) -> bool:
        now = time.perf_counter()
        self.began = self.began or (now, trainer.step)
        left = self.ends - now - self.slowest_write
        if trainer.step % trainer.steps_per_epoch == 0 and left < (seconds := trainer.seconds_per_pool):
            return left < 0 or (seconds > 0 and trainer.needs_pool())
        return left < 0

    def total(self, trainer: Trainer, planned: int) -> int:
        """About how many steps there will be in all; as planned, until a tenth of the time has passed."""
        began, first = self.began or (self.ends, 0)
        now = time.perf_counter()
        done = trainer.step - first
        if done < 1 or now - began < (self.ends - began) / 10:
            return max(planned, trainer.step + 1)
        left = self.ends - now - self.slowest_write
        return trainer.step + max(1, round(left * done / (now - began)))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A context for what is written after a step, as it is after the last one."""
        began = time.perf_counter()
        yield
        self.slowest_write = max(self.slowest_write, time.perf_counter() - began)
