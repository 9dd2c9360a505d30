"""What a checkpoint holds of a training, and going back to it."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imletriton.errors import Fault, InputError, notice
from imletriton.runs.checkpoint import MEND, load_checkpoint, newest_whole, save_checkpoint, set_aside
from imletriton.runs.reading import Damaged
from imletriton.runs.run import Run
from imletriton.system.device import environment
from imletriton.training.trainer import Trainer
from imletriton.training.watch import Watch
from imletriton.training.weights import MOMENTS

# The averaged weights have a file of their own, the distance never changes, and `working` follows from the weights.
NOT_SAVED = ("ema.", "distance.", "working.")
COUNTERS = ("step", "rounds", "draws", "relaxed", "loss")
STEPS = "step"  # of the optimizer, for each weight


def state_of(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that resuming needs besides the averaged weights and the recipe: tensors, and plain values."""
    tensors = {k: v for k, v in trainer.state_dict().items() if not k.startswith(NOT_SAVED)}
    for name, parameter in trainer.generator.named_parameters():
        for key, value in trainer.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    if trainer.strategy.reuses_pool and trainer.draws:
        tensors["pool.features"] = trainer.pool.features
    counters = {k: getattr(trainer, k) for k in COUNTERS}
    return tensors, counters | {"figures": trainer.metrics, "data": trainer.data_hash}


def restore(trainer: Trainer, ema: dict[str, Tensor], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Bring a trainer back to a saved state: the averaged weights, and what `state_of` returned.

    Raises:
        InputError: The data points are not those that were trained on.
        ValueError: The state is incomplete, belongs to another recipe, or has weights that are not finite.
    """
    if state["data"] != trainer.data_hash:
        raise InputError("data.source holds other pictures than this run was trained on: start a new run.")
    if missing := [key for key in (*COUNTERS, "figures") if key not in state]:
        raise ValueError(f"its state lacks {missing[0]}")
    own = {k: v for k, v in tensors.items() if not k.startswith(("optimizer.", "pool."))}
    _load(trainer, own | {f"ema.{k}": v for k, v in ema.items()}, lambda name: not name.startswith(NOT_SAVED[1:]))
    if not trainer.finite:
        raise ValueError("its weights are NaN or infinite")
    _restore_optimizer(trainer, tensors, state["step"])
    trainer.copies.write()
    trainer.copies.zero_grad()
    for key in COUNTERS:
        setattr(trainer, key, state[key])
    trainer.metrics = state["figures"]
    trainer.order = torch.empty(0)  # that of another epoch, perhaps
    if trainer.strategy.reuses_pool and trainer.draws:
        features = tensors.get("pool.features", torch.empty(0))
        if features.shape != (shape := (trainer.pool.size, trainer.features.shape[1])):
            raise ValueError(f"pool.features has the shape {tuple(features.shape)}, not {shape}")
        trainer.pool.restore(trainer.draws - 1, features.float())


def _restore_optimizer(trainer: Trainer, tensors: dict[str, Tensor], step: int) -> None:
    """Copy saved moments to where the optimizer keeps its own, whose addresses a CUDA graph may have recorded."""
    done = set[float]()
    for name, weight in trainer.generator.named_parameters():
        for key in (STEPS, *MOMENTS):
            saved, own = tensors.get(f"optimizer.{key}.{name}"), trainer.optimizer.state[weight][key]
            if saved is None:
                raise ValueError(f"it lacks a tensor of the optimizer's {key}")
            if saved.shape != own.shape:
                raise ValueError(f"size mismatch for optimizer.{key}.{name}")
            own.copy_(saved)
        done.add(float(trainer.optimizer.state[weight][STEPS]))
    if len(done) != 1 or not 0 <= min(done) <= step:  # the same for all weights; steps without gradients do not count
        raise ValueError("its optimizer has not done the steps of its trainer")


def _load(module: nn.Module, tensors: dict[str, Tensor], needed: Callable[[str], bool]) -> None:
    """Load a module's tensors.

    Raises:
        ValueError: A tensor that is needed is missing, or one is unknown or of another shape.
    """
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # a shape: the last of several lines says which
        raise ValueError(str(error).splitlines()[-1].strip().rstrip(".")) from error
    if lacking := [*filter(needed, missing)]:
        raise ValueError(f"it lacks {lacking[0]}")
    if unexpected:
        raise ValueError(f"its {unexpected[0]} is not known")


@contextlib.contextmanager
def unchanged(trainer: Trainer) -> Iterator[None]:
    """A context after which training goes on as if nothing had been trained in it."""
    ema, (tensors, state) = copy.deepcopy((trainer.ema.state_dict(), state_of(trainer)))
    try:
        yield
    finally:
        restore(trainer, ema, tensors, state)


def save(trainer: Trainer, watch: Watch, run: Run, keep: int) -> None:
    """Save a checkpoint, and remove all older ones but the newest `keep` and the best.

    Raises:
        Fault: Weights are not finite, or the checkpoint cannot be written.
    """
    if not trainer.finite:
        raise Fault(
            f"At step {trainer.step} weights were NaN or infinite, so they were not saved: lower train.learning_rate."
        )
    tensors, state = state_of(trainer)
    state |= watch.state() | {"environment": environment(trainer.device)}
    save_checkpoint(run.path, trainer.step, trainer.ema, tensors, state, keep)


def resume(trainer: Trainer, watch: Watch, run: Run) -> None:
    """Bring a trainer to the run's newest checkpoint that is whole; newer ones, which are damaged, are set aside.

    All processes must call this.

    Raises:
        InputError: Another process found no such checkpoint, or the pictures have changed.
        Damaged: The run has checkpoints, and none of them is whole.
    """
    group = trainer.group

    def load(folder: Path) -> None:
        try:
            weights, tensors, state = load_checkpoint(folder)
            restore(trainer, weights, tensors, state)
            watch.restore(state)
        except ValueError as error:
            raise Damaged(f"{folder} is damaged or of another recipe ({error})", MEND) from error

    newest, damaged = newest_whole(run.path, load) if group.writes else (None, {})
    chosen = group.text(str(newest or ""), trainer.device)
    if not chosen:
        notice(f"{run.path} holds no checkpoint yet, so training begins again at step 0.")
    elif not group.writes:
        load(Path(chosen))
    for folder, what in damaged.items():
        notice(f"{what}: it is kept as {set_aside(folder).name}, and training goes on from {Path(chosen).name}.")
    step = group.text(str(trainer.step), trainer.device)
    if step != str(trainer.step):
        raise InputError(
            f"{run.path} has no checkpoint of step {step} on every machine: the machines must share the run's folder."
        )
