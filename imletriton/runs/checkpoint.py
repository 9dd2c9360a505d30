"""Checkpoints: a model that can be loaded by itself and all that resuming needs, whole or not at all. No pickle."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imletriton.errors import Fault, InputError
from imletriton.runs.run import checkpoints_of, to_disk, write_whole

TRAINER_TENSORS, TRAINER_STATE = "trainer.safetensors", "trainer.json"


class SavesItself(Protocol):
    """A model with the Hugging Face Hub's `save_pretrained`, which writes config.json and model.safetensors."""

    def save_pretrained(self, save_directory: Path, /) -> object: ...


def save_checkpoint(
    run: Path, step: int, model: SavesItself, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write RUN/checkpoints/STEP, then remove all other checkpoints but the newest `keep` and the best.

    A process that is killed at any moment leaves each checkpoint whole or absent.

    Args:
        run: The run's folder.
        step: The training steps done.
        model: The model with its averaged (EMA) weights.
        tensors: What else resuming needs, by name.
        state: The rest of it, as values that JSON can hold.
        keep: How many of the newest checkpoints stay, besides the best one (see `best_checkpoint`).

    Returns:
        The checkpoint's folder.

    Raises:
        Fault: The checkpoint cannot be written.
    """
    folder = run / "checkpoints" / f"{step:06d}"
    unfinished = folder.with_name(f".{folder.name}")
    try:
        _remove_unfinished(folder.parent)
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, unfinished / TRAINER_TENSORS)
        (unfinished / TRAINER_STATE).write_text(json.dumps(state, indent=1))
        for path in (*unfinished.iterdir(), unfinished):
            to_disk(path)
        unfinished.rename(folder)
        to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Fault(f"{folder} could not be written ({error}): make room there, then go on with `resume=True`.") from error
    _prune(run, keep)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Load all of a checkpoint.

    Returns:
        The model's averaged (EMA) weights, the trainer's tensors, and the trainer's state.

    Raises:
        InputError: A file is missing or damaged.
    """
    try:
        weights, tensors = (load_file(folder / name) for name in ("model.safetensors", TRAINER_TENSORS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}): remove it to go on from the one before.") from error
    return weights, tensors, load_state(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """Load a checkpoint's state alone.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        state: dict[str, Any] = json.loads((folder / TRAINER_STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is damaged ({error}): remove it to go on from the one before.") from error
    return state


def note_fid(folder: Path, fid: float) -> None:
    """Add a checkpoint's FID to its state, by which `best_checkpoint` then judges it."""
    state = load_state(folder) | {"fid": fid}
    write_whole(folder / TRAINER_STATE, lambda file: file.write_text(json.dumps(state, indent=1)))


def _prune(run: Path, keep: int) -> None:
    best = best_checkpoint(run)
    for folder in checkpoints_of(run)[:-keep]:
        if folder != best:
            # Renamed first: a half-removed folder must not look like a checkpoint.
            doomed = folder.rename(folder.with_name(f".{folder.name}"))
            shutil.rmtree(doomed)


def best_checkpoint(run: Path) -> Path:
    """The checkpoint with the least FID; where none was measured, the one with the least loss.

    Of equals, the newest. The run must have a checkpoint.
    """
    return min(reversed(checkpoints_of(run)), key=_rank)


def _rank(folder: Path) -> tuple[float, float]:
    """What checkpoints are ordered by: the FID, then the loss; a damaged checkpoint is never the best."""
    try:
        state = load_state(folder)
        scores = state.get("fid"), state["loss"]
    except (InputError, KeyError):
        scores = None, None
    fid, loss = (math.inf if score is None else float(score) for score in scores)
    return fid, loss


def _remove_unfinished(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a checkpoint."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.\d{6,}", path.name):
            shutil.rmtree(path)
