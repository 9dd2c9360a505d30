"""From a checked recipe to a trained run: build the trainer, lock the run, resume, compile, train."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.data import held_out, load_points, training_part
from imletriton.errors import Fault, InputError, Interrupted
from imletriton.recipe import Recipe
from imletriton.runs import run as runs
from imletriton.runs.run import Run
from imletriton.system import torchrun
from imletriton.system.device import choose_device, device_name, free_gpu_memory, set_up, wants_bfloat16
from imletriton.system.distributed import ALONE, Group, joined
from imletriton.system.stopping import StopRequest
from imletriton.training.build import build
from imletriton.training.compiling import compile_networks, compiles
from imletriton.training.memory import check_memory
from imletriton.training.pace import Deadline, Pace, StepLimit, in_words, measure_pace, outlook, smaller_rounds
from imletriton.training.reporter import Reporter
from imletriton.training.session import Session, write_recipe
from imletriton.training.state import resume
from imletriton.training.trainer import Trainer
from imletriton.training.watch import Watch

LONG_ON_CPU = 24 * 3600  # seconds; a training that takes longer must be asked for


class Ready(NamedTuple):
    """A trainer at step 0, the pictures that it does not train on, and how fast it is here."""

    trainer: Trainer
    held_out: Tensor | None  # uint8 [k, 3, H, W]
    pace: Pace


def prepare(
    recipe: Recipe,
    device: torch.device,
    group: Group = ALONE,
    note: Callable[[str], object] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ready:
    """Check that a recipe fits into memory, read its data points, build its trainer and measure its pace.

    Args:
        recipe: The recipe.
        device: Where to train.
        group: The processes that train together; all of them must call this.
        note: Called with sentences on what happens.
        progress: Called with the number of pictures decoded so far, and their total.

    Raises:
        InputError: The recipe does not fit or suit the data points, or these cannot be read.
    """
    free = free_gpu_memory(device) if device.type == "cuda" else None
    check_memory(recipe, wants_bfloat16(recipe.train.precision, device), group.size, free)
    data = recipe.data
    note(f"Reading the data points of {data.source}.")
    pictures = load_points(data.source, data.resolution, progress=progress)
    weights = f", with {recipe.distance.weights} weights" if recipe.distance.kind == "lpips" else ""
    note(f"Building the generator and the distance{weights}.")
    trainer = build(recipe, training_part(pictures, data.mirror, data.holdout), device, group)
    left_out = held_out(pictures, data.holdout) if data.holdout else None
    return Ready(trainer, left_out, measure_pace(trainer))


def train(
    recipe: Recipe,
    run: Run | None,
    resumes: bool,
    device: str | torch.device | None,
    reporter: Reporter,
    deadline: Deadline | None = None,
    prepared: Ready | None = None,
) -> Run:
    """Train as a recipe says, in every process that torchrun has started; see `imletriton.fit`.

    Args:
        recipe: The recipe.
        run: The run to write, in the first process; None for a new one with the next free number.
        resumes: Whether to continue from the run's newest checkpoint.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        reporter: Is told what happens, in the first process.
        deadline: When to end; by default after the recipe's number of steps.
        prepared: The recipe's trainer, where a plan has built and measured it already.
    """
    chosen = choose_device(device)
    set_up(chosen)
    gc.collect()  # an earlier trainer refers to itself, and may still hold a GPU's memory
    if (others := torchrun.processes() - 1) > 0:
        reporter.note(f"Waiting for the other processes: {others}.")
    with joined(chosen) as group:
        if group.size > (batch := recipe.train.batch_size):
            raise InputError(f"{group.size} processes cannot share a batch of {batch}: start {batch} at most.")
        resumes = group.any(resumes, chosen)  # also waits: the first process may have fetched the pictures
        trainer, left_out, pace = prepared or prepare(recipe, chosen, group, reporter.note, reporter.pictures)
        watch = Watch(trainer, left_out)
        unasked = device is None and deadline is None and not resumes and group.size == 1
        if unasked and chosen.type == "cpu" and (seconds := pace.to_come(trainer)) > LONG_ON_CPU:
            raise InputError(
                f"Without a CUDA GPU {recipe.name!r} would take {in_words(seconds)} here: use a GPU or a smaller "
                "recipe, or ask for it with `device='cpu'`."
            )
        measure_fid = None
        if recipe.log.fid_every and group.writes:
            from imletriton.training.fid import TrainingFID  # here, as its network loads slowly

            reporter.note("Loading the network of the FID, and measuring the pictures by it.")
            measure_fid = TrainingFID(recipe, chosen)
        # From here on a signal stops training after a step. Only then is the run's folder made: none is left empty.
        with StopRequest(group, chosen) as stop, _locked(run, recipe, trainer) as run:
            group.wait(chosen)  # from here on, Ctrl-C stops all processes together
            if resumes:
                resume(trainer, watch, run)
            elif group.writes and (run.recipe_file.exists() or run.checkpoints):  # another process was faster
                raise InputError(
                    f"{run.path} holds a run already: add `resume=True` to continue it, or name another folder."
                )
            if group.writes:
                write_recipe(recipe, run)
            reporter.started(run, trainer, recipe.train.iterations)
            if compiles(trainer):
                reporter.note(f"Compiling for {device_name(chosen)}, which takes minutes at each start.")
                if reason := compile_networks(trainer):
                    reporter.note(f"Compiling failed ({reason}): training continues without it, slower.")
                pace = measure_pace(trainer)
            end = deadline or StepLimit(recipe.train.iterations, outlook(pace, trainer, recipe))
            reporter.note(end.outlook)
            if not resumes and not prepared and (advice := smaller_rounds(pace, trainer)):
                reporter.note(advice)
            try:
                Session(recipe, trainer, watch, run, reporter, stop, end, measure_fid).train()
            except Interrupted:
                group.wait(chosen)
                raise
            group.wait(chosen)
    return run


@contextlib.contextmanager
def _locked(run: Run | None, recipe: Recipe, trainer: Trainer) -> Iterator[Run]:
    """Lock a run, or a new one where it is None, in the process that writes it. All processes must call this."""
    group = trainer.group
    if run is None and group.writes:
        run = runs.new_run(recipe.name)
    run = Run(Path(group.text(str(run.path) if run else "", trainer.device)))
    with _writing_faults(run), run.lock(torchrun.job()) if group.writes else contextlib.nullcontext():
        yield run


@contextlib.contextmanager
def _writing_faults(run: Run) -> Iterator[None]:
    """Turn what keeps a run from being written, such as a full disk, into a Fault that says how to go on."""
    try:
        yield
    except FileNotFoundError as error:
        raise Fault(
            f"{run.path} was moved or removed during training, so nothing more can be saved there: if it was moved, "
            "continue in its new place with `resume=True`."
        ) from error
    except OSError as error:
        path = error.filename2 or error.filename or run.path
        raise Fault(
            f"{path} cannot be written ({error.strerror}): solve that, then continue with `resume=True`."
        ) from error
