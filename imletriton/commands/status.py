"""How a run is doing, read from its folder while it trains or afterwards: `imletriton status`."""

import contextlib
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from imletriton.errors import InputError
from imletriton.recipe import Recipe
from imletriton.runs import run as runs
from imletriton.runs.checkpoint import best_checkpoint, load_state, newest_whole
from imletriton.runs.opening import open_run
from imletriton.runs.reading import Damaged
from imletriton.runs.run import Run
from imletriton.runs.schema import LogRecord

FIGURES = ("loss", "samples_to_data", "held_out_to_samples", "fid", "images_per_s", "bad_steps")  # that are shown


class Status(BaseModel):
    """How a run is doing; None stands for what is not known."""

    run: str  # its folder
    state: Literal["training", "stopped", "done", "damaged"]
    step: int  # the newest in the log or of a checkpoint
    steps: int | None  # in all
    seconds_left: float | None  # estimated, while it trains
    seconds_silent: float | None  # since the log was last written, while it trains
    checkpoint: str | None  # the newest one
    best: str | None  # the best one, unless that is the newest
    sheet: str | None  # the newest sheet of samples
    figures: dict[str, float]  # the newest of FIGURES
    curves: dict[str, list[float]]  # all measurements of the distances so far, by their keys in the log
    notes: list[str]  # sentences that a reader must know
    also_training: list[str]  # other runs in runs/ that train at the moment

    def to_json(self) -> dict[str, Any]:
        """All fields, as plain values for JSON."""
        return self.model_dump(mode="json")


def status(run: str | Path | None = None, thorough: bool = True) -> Status:
    """Find out how a run is doing. Nothing is changed, and no lock is held for longer than a moment.

    Args:
        run: The run's folder; by default the one that was started or saved last.
        thorough: Whether to look for damage in the checkpoints of a run that is not training.

    Raises:
        InputError: There is no such run.
    """
    opened = open_run(Path(run) if run is not None else None)
    training, notes = opened.is_locked, list[str]()
    recipe = None
    try:
        recipe = Recipe.load(opened.recipe_file)
    except InputError as error:
        notes.append(str(error))
    log = opened.log()
    damaged = not training and (recipe is None or (thorough and _checkpoints_damaged(opened, notes)))
    checkpoint = next(reversed(opened.checkpoints), None)
    step = max([int(checkpoint.name) if checkpoint else 0, *(record.step for record in log[-1:])])
    steps = recipe.train.iterations if recipe else None
    done = checkpoint is not None and recipe is not None and _is_done(checkpoint, recipe, notes)
    sheets = sorted(opened.samples.glob("*.png"), key=lambda file: (len(file.name), file.name))
    best = _best(opened) if checkpoint else None
    silent = _seconds_since(opened.log_file) if training else None
    return Status(
        run=str(opened.path),
        state="training" if training else "damaged" if damaged else "done" if done else "stopped",
        step=step,
        steps=steps,
        seconds_left=_seconds_left(log, steps, silent) if training and steps is not None else None,
        seconds_silent=silent,
        checkpoint=str(checkpoint) if checkpoint else None,
        best=str(best) if best and best != checkpoint else None,
        sheet=str(sheets[-1]) if sheets else None,
        figures={key: found for key in FIGURES if (found := _newest(log, key)) is not None},
        curves={key: values for key in ("samples_to_data", "held_out_to_samples") if (values := _all(log, key))},
        notes=notes,
        also_training=_also_training(opened),
    )


def _checkpoints_damaged(run: Run, notes: list[str]) -> bool:
    """Whether a checkpoint of the run is damaged; the notes then say which."""
    try:
        newest, damaged = newest_whole(run.path)
    except Damaged as error:
        notes.append(str(error))
        return True
    notes += [f"{what}: {newest} is used instead." for what in damaged.values()]
    return bool(damaged)


def _is_done(checkpoint: Path, recipe: Recipe, notes: list[str]) -> bool:
    """Whether training has reached its last step, or stopped because it no longer improved."""
    if int(checkpoint.name) >= recipe.train.iterations:
        return True
    with contextlib.suppress(Damaged):
        if 0 < recipe.train.patience <= load_state(checkpoint).get("stale", 0):
            notes.append(f"It stopped at step {int(checkpoint.name)}, as it no longer improved (train.patience).")
            return True
    return False


def _best(run: Run) -> Path | None:
    """The best checkpoint; None where training removes it in the meantime."""
    with contextlib.suppress(OSError, ValueError):
        return best_checkpoint(run.path)
    return None


def _all(log: list[LogRecord], key: str) -> list[float]:
    """All values of a key of the log."""
    return [float(value) for record in log if (value := getattr(record, key)) is not None]


def _newest(log: list[LogRecord], key: str) -> float | None:
    return next(reversed(_all(log, key)), None)


def _seconds_left(log: list[LogRecord], steps: int, silent: float | None) -> float | None:
    """Estimate how long training will still take, at its mean speed since it was started or resumed."""
    timed = [(record.seconds, record.step) for record in log if record.seconds is not None]
    first = 0  # line of the process that trains now: each process counts its seconds from zero
    for k, (before, after) in enumerate(pairwise(timed), start=1):
        first = k if after[0] < before[0] else first
    if len(timed) - first < 2:
        return None
    (began, at), (now, step) = timed[first], timed[-1]
    return max(0.0, (now - began) / max(1, step - at) * (steps - step) - (silent or 0.0))


def _seconds_since(file: Path) -> float | None:
    """How long ago a file was written; None where there is none."""
    with contextlib.suppress(OSError):
        return max(0.0, time.time() - file.stat().st_mtime)
    return None


def _also_training(run: Run) -> list[str]:
    folders = sorted(runs.RUNS.iterdir()) if runs.RUNS.is_dir() else []
    return [str(path) for path in folders if path.resolve() != run.path.resolve() and Run(path).is_locked]
