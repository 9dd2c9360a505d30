"""Checkpoints: a generator that stands by itself and all that resuming needs, whole or not at all. No pickle."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imletriton.errors import Fault, InputError
from imletriton.generator import Generator
from imletriton.runs.run import checkpoints_of, to_disk, write_whole

TRAINER_TENSORS, TRAINER_STATE = "trainer.safetensors", "trainer.json"


def save_checkpoint(
    run: Path, step: int, generator: Generator, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write RUN/checkpoints/STEP and drop all but the newest `keep` and the best (`best_checkpoint`).

    A process killed at any moment leaves each checkpoint whole or absent. Raises Fault where it cannot be written.
    """
    folder = run / "checkpoints" / f"{step:06d}"
    unfinished = folder.with_name(f".{folder.name}")
    try:
        _remove_unfinished(folder.parent)
        unfinished.mkdir(parents=True)
        generator.save_pretrained(unfinished)
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, unfinished / TRAINER_TENSORS)
        (unfinished / TRAINER_STATE).write_text(json.dumps(state, indent=1))
        for path in (*unfinished.iterdir(), unfinished):
            to_disk(path)
        unfinished.rename(folder)
        to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Fault(f"{folder} could not be written ({error}): make room there, then go on with --resume.") from error
    _prune(run, keep)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's EMA weights, the trainer's tensors and its state. Raises InputError where one is damaged."""
    try:
        weights, tensors = (load_file(folder / name) for name in ("model.safetensors", TRAINER_TENSORS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}): remove it to go on from the one before.") from error
    return weights, tensors, load_state(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state alone. Raises InputError where it is damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / TRAINER_STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is damaged ({error}): remove it to go on from the one before.") from error
    return state


def note_fid(folder: Path, fid: float) -> None:
    """Write a checkpoint's FID into its state."""
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
    """Of a run's checkpoints, at least one, that of least state["fid"]; where none has one, of least state["loss"]."""
    return min(reversed(checkpoints_of(run)), key=_rank)


def _rank(folder: Path) -> tuple[float, float]:
    try:
        state = load_state(folder)
        found = state.get("fid"), state["loss"]
    except (InputError, KeyError):
        found = None, None  # damaged since: no candidate for the best
    fid, loss = (math.inf if value is None else float(value) for value in found)
    return fid, loss


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.\d{6,}", path.name):
            shutil.rmtree(path)
