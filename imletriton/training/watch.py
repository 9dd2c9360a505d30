"""During training: how far random samples are from the data, and how long that has not improved."""

from typing import Any

import torch
from torch import Tensor

from imletriton.generator import latent_codes
from imletriton.search import nearest
from imletriton.training.memory import BATCH
from imletriton.training.trainer import Trainer

SAMPLES = 256  # always of the same latent codes, so that the curve has none of their noise
STREAM = 2**31  # of random numbers: that of no draw of a pool
MARGIN = 1e-3  # what counts as an improvement, as a share of the best so far
DATA, HELD_OUT = KEYS = ("samples_to_data", "held_out_to_samples")  # as the log and checkpoints call the distances


class Watch:
    """Measures SAMPLES samples of the averaged weights in the search features of a trainer.

    Measuring does not affect training. Each process of the trainer's group makes its share of the samples, and all of
    them get the same figures.

    Attributes:
        figures: The newest distances by their KEYS; empty before the first measurement.
        best: The smallest distance so far: from held-out pictures to samples where there are any, else from samples to
            the data.
        best_step: The step at which it was measured.
        stale: How many measurements there have been since then.

    Args:
        trainer: The trainer.
        held_out: Pictures that are not trained on, uint8 [k, 3, H, W]; none by default.
    """

    def __init__(self, trainer: Trainer, held_out: Tensor | None = None) -> None:
        self.trainer = trainer
        self.held_out = None if held_out is None else self._features(held_out.split(BATCH))
        self.figures: dict[str, float] = {}
        self.best: float | None = None
        self.best_step = self.stale = 0

    @property
    def deciding(self) -> str:
        """The key of the distance that `best` refers to."""
        return DATA if self.held_out is None else HELD_OUT

    def is_over(self, patience: int) -> bool:
        """Whether this many measurements in a row have brought no improvement; a patience of 0 never runs out."""
        return 0 < patience <= self.stale

    @property
    def verdict(self) -> str:
        """A sentence on why training ends."""
        what = "samples to the data" if self.held_out is None else "held-out pictures to samples"
        return (
            f"Stopped early: the distance from {what} has not improved in the last {self.stale} measurements; it was "
            f"smallest at step {self.best_step} ({self.best:.4f}). To continue, resume with `train.patience=0`."
        )

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Measure both distances and remember them; all processes must call this together.

        Returns:
            The mean distance from the samples to their nearest data points and, where pictures are held out, from those
            to their nearest samples, by their KEYS. Empty where no sample is finite.
        """
        trainer = self.trainer
        codes = latent_codes(0, SAMPLES, trainer.generator.latent_dim, seed=trainer.settings.seed, stream=STREAM)
        batches = codes.to(trainer.device).split(BATCH)
        mine = trainer.group.share(len(batches))
        with trainer.autocast():
            made = self._features([trainer.ema(z) for z in batches[mine]])
        samples = made.new_zeros(SAMPLES, trainer.features.shape[1])
        samples[mine.start * BATCH : mine.stop * BATCH] = made
        trainer.group.complete(samples.view(len(batches), -1))
        samples = samples[samples.isfinite().all(1)]
        if len(samples) == 0:
            return {}
        self.figures = {DATA: _mean_distance(samples, trainer.features)}
        if self.held_out is not None:
            self.figures[HELD_OUT] = _mean_distance(self.held_out, samples)
        found = self.figures[self.deciding]
        self.stale += 1
        if self.best is None or found < self.best * (1 - MARGIN):
            self.best, self.best_step, self.stale = found, trainer.step, 0
        return self.figures

    def _features(self, batches: Any) -> Tensor:
        """The search features of batches of samples or pictures, float32 [k, d]."""
        trainer = self.trainer
        with torch.no_grad(), trainer.autocast():
            features = [trainer.distance.features(batch.to(trainer.device)) for batch in batches]
        return torch.cat(features) if features else trainer.features[:0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of it; see `TrainerState`."""
        return self.figures | {"best": self.best, "best_step": self.best_step, "stale": self.stale}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint's state."""
        self.figures = {key: state[key] for key in KEYS if state.get(key) is not None}
        self.best, self.best_step, self.stale = state["best"], state["best_step"], state["stale"]


def _mean_distance(queries: Tensor, pool: Tensor) -> float:
    """The mean distance of the queries, float32 [k, d], to the nearest of a pool, float32 [m, d]."""
    return float(nearest(queries, pool).sq_distance.sqrt().mean())
