"""Checkpoints: a model that loads by itself, plus all that resuming needs; written whole or not at all. No pickle.

trainer.json holds the SHA-256 sums of the other files, and of everything else in itself. They reveal files that are
damaged or come from another checkpoint. Checking does not load PyTorch, which is slow.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from imletriton.errors import Fault
from imletriton.runs.reading import Damaged, read_json, regular, why
from imletriton.runs.run import checkpoints_of, is_checkpoint, to_disk, write_whole
from imletriton.runs.schema import TrainerState

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
    from torch import Tensor

CONFIG, WEIGHTS = MODEL_FILES = ("config.json", "model.safetensors")
TRAINER_TENSORS, TRAINER_STATE = "trainer.safetensors", "trainer.json"
MEND = "use another checkpoint"
JUDGES = ("fid", "held_out_to_samples", "samples_to_data", "loss")  # rank checkpoints in this order; less is better


def save_checkpoint(
    run: Path, step: int, model: "PyTorchModelHubMixin", tensors: "dict[str, Tensor]", state: dict[str, Any], keep: int
) -> Path:
    """Write RUN/checkpoints/STEP, then remove all checkpoints except the newest `keep` and the best.

    A process that is killed at any moment leaves each checkpoint whole or absent.

    Args:
        run: The run's folder.
        step: The training steps done.
        model: The model with its averaged (EMA) weights.
        tensors: The trainer's tensors.
        state: The trainer's other state, see `TrainerState`.
        keep: How many of the newest checkpoints to keep, besides the best one (see `best_checkpoint`).

    Returns:
        The checkpoint's folder.

    Raises:
        Fault: The checkpoint cannot be written.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"{step:06d}"
    unfinished = folder.with_name(f".{folder.name}")
    try:
        _remove_unfinished(folder.parent)
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, unfinished / TRAINER_TENSORS)
        sums = {name: _sum(unfinished / name) for name in (*MODEL_FILES, TRAINER_TENSORS)}
        (unfinished / TRAINER_STATE).write_text(_sealed(state | {"sha256": sums}))
        for path in (*unfinished.iterdir(), unfinished):
            to_disk(path)
        unfinished.rename(folder)
        to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Fault(
            f"{folder} could not be written ({error}): make room there, then go on with `resume=True`."
        ) from error
    _prune(run, keep)
    return folder


def load_checkpoint(folder: Path) -> "tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]":
    """Check and load all of a checkpoint.

    Returns:
        The model's averaged (EMA) weights, the trainer's tensors, and the trainer's state.

    Raises:
        Damaged: See `check_checkpoint`; or it is a model alone, without the trainer's files.
    """
    from safetensors.torch import load_file

    check_checkpoint(folder)
    state = load_state(folder)  # first: it explains that a model alone has no state
    return load_file(folder / WEIGHTS), load_file(folder / TRAINER_TENSORS), state


def load_state(folder: Path) -> dict[str, Any]:
    """Check and load the trainer's state of a checkpoint; raises Damaged if it is not as it was written."""
    file = folder / TRAINER_STATE
    state = read_json(file, dict[str, Any], MEND)
    try:
        TrainerState.model_validate(state)
    except ValidationError as error:
        raise Damaged(f"{file} is damaged ({why(error)})", MEND) from error
    if json.loads(_sealed(state))["sha256"] != state["sha256"]:
        raise Damaged(f"{file} is damaged (its values do not match its SHA-256 sum)", MEND)
    if is_checkpoint(folder) and int(folder.name) != state["step"]:
        raise Damaged(f"{file} is from another checkpoint, at step {state['step']}", MEND)
    return state


def check_checkpoint(folder: Path) -> None:
    """Check that all files of a checkpoint match their sums and all weights are finite.

    The trainer's files may be missing, if both are: that is a model alone, for which there are no sums.

    Raises:
        Damaged: A file is missing or damaged or belongs to another checkpoint, or a weight is NaN or infinite.
    """
    with_state = any((folder / name).exists() for name in (TRAINER_STATE, TRAINER_TENSORS))
    names = [*MODEL_FILES, TRAINER_TENSORS] if is_checkpoint(folder) and with_state else MODEL_FILES
    sums = load_state(folder)["sha256"] if with_state else None
    for file in (folder / name for name in names):
        try:
            if sums and sums.get(file.name) != _sum(file):
                raise Damaged(f"{file} is damaged or from another checkpoint (its SHA-256 sum is wrong)", MEND)
            if file.suffix == ".safetensors":
                with safe_open(regular(file), "numpy") as tensors:
                    if file.name == WEIGHTS and not _are_finite(tensors):
                        raise Damaged(f"{file} holds weights that are NaN or infinite", MEND)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise Damaged(f"{file} is damaged ({reason or error})", MEND) from error
    read_json(folder / CONFIG, dict[str, Any], MEND)


def newest_whole(run: Path, check: Callable[[Path], object] = check_checkpoint) -> tuple[Path | None, dict[Path, str]]:
    """Find a run's newest checkpoint that is not damaged.

    Args:
        run: The run's folder.
        check: Called with each checkpoint's folder, newest first, until it does not raise `Damaged`.

    Returns:
        The checkpoint's folder, or None if the run has none; and what is wrong with each newer checkpoint.

    Raises:
        Damaged: The run has checkpoints, but all are damaged.
    """
    damaged = dict[Path, str]()
    for folder in reversed(checkpoints_of(run)):
        try:
            check(folder)
        except Damaged as error:
            if not folder.exists():  # training has removed it meanwhile, for a newer one
                return newest_whole(run, check)
            damaged[folder] = error.what
        else:
            return folder, damaged
    if damaged:
        newest = next(iter(damaged.values()))
        raise Damaged(f"{newest}, and {run} has no other checkpoint that is whole", "train it anew")
    return None, damaged


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts as one, and return its new path."""
    free = (folder.with_name(f"{folder.name}.damaged{k or ''}") for k in range(10**6))
    return folder.rename(next(path for path in free if not path.exists()))


def note_fid(folder: Path, fid: float) -> None:
    """Add a checkpoint's FID to its state."""
    text = _sealed(load_state(folder) | {"fid": fid})
    write_whole(folder / TRAINER_STATE, lambda file: file.write_text(text))


def _sum(file: Path) -> str:
    with regular(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sealed(state: dict[str, Any]) -> str:
    """The text of trainer.json: the state, with the sum of everything else in it added to its sums."""
    sums = {name: value for name, value in state.get("sha256", {}).items() if name != TRAINER_STATE}
    text = json.dumps(state | {"sha256": sums}, sort_keys=True)
    sums[TRAINER_STATE] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(state | {"sha256": sums}, indent=1)


def _are_finite(tensors: safe_open) -> bool:
    """Whether all numbers in a safetensors file are finite."""
    import numpy as np

    kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  # not a mapping
    floats = (tensors.get_tensor(name) for name, kind in kinds.items() if kind in ("F16", "F32", "F64"))
    return all(np.isfinite(tensor).all() for tensor in floats)


def _prune(run: Path, keep: int) -> None:
    best = best_checkpoint(run)
    for folder in checkpoints_of(run)[:-keep]:
        if folder != best:
            # Renamed first: a half-removed folder must not look like a checkpoint.
            _remove(folder.rename(folder.with_name(f".{folder.name}")))


def best_checkpoint(run: Path) -> Path:
    """The best of a run's checkpoints, of which there must be at least one.

    That is the one with the lowest FID; where it was not measured, with the lowest distance from held-out pictures to
    samples, then from samples to the data, then loss. Of equals, the newest.
    """
    return min(reversed(checkpoints_of(run)), key=_rank)


def _rank(folder: Path) -> tuple[float, ...]:
    """The values of JUDGES; infinite where they are not known, as in a damaged checkpoint."""
    try:
        state = load_state(folder)
    except Damaged:
        state = {}
    scores = map(state.get, JUDGES)
    return tuple(math.inf if score is None or math.isnan(score) else score for score in scores)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a process left behind that was killed while it wrote or removed a checkpoint."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.\d{6,}", path.name):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint's folder, or whatever lies in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
