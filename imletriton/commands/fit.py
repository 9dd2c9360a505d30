"""From a recipe to a trained run: what `imletriton.fit` and the command line call."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from imletriton.build import build
from imletriton.commands.checks import find_recipe, find_run
from imletriton.commands.duration import Pace, in_words, measure_pace
from imletriton.commands.memory import check_memory
from imletriton.commands.reporter import Reporter
from imletriton.data import load_points
from imletriton.errors import Fault, InputError, Interrupted, notice, telling_of_memory
from imletriton.generator import Generator
from imletriton.plotting.grids import sample_sheet, save_samples
from imletriton.recipe import Recipe
from imletriton.runs import run as runs
from imletriton.runs.checkpoint import (
    MEND,
    load_checkpoint,
    load_state,
    newest_whole,
    note_fid,
    save_checkpoint,
    set_aside,
)
from imletriton.runs.log import RunLog
from imletriton.runs.reading import Damaged
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord
from imletriton.runs.trackers import check_trackers
from imletriton.selection.parameters import VanillaParameters
from imletriton.system import torchrun
from imletriton.system.device import (
    choose_device,
    device_name,
    environment,
    free_gpu_memory,
    memory_mb,
    set_up,
    wants_bfloat16,
)
from imletriton.system.distributed import joined
from imletriton.system.stopping import StopRequest, StopRequested
from imletriton.trainer import PoolProgress, Trainer

LONG_ON_CPU = 24 * 3600  # seconds; what takes longer must be asked for


@telling_of_memory
def fit(
    recipe: Recipe | str | Path | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train a generator as a recipe says.

    Under torchrun, the processes train one run together; the first one writes and reports. Processes that torchrun has
    restarted go on with the run that they had begun.

    Args:
        recipe: What to train, on which data points, and how; or its file, or the name of a recipe that comes with
            imletriton. With `resume`, a run's folder will do, or nothing for the run in `run_dir`, by default the
            newest: its own recipe is taken.
        run_dir: The run's folder; by default runs/NAME-001 and so on, and with `resume` the newest run of that name.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        resume: Go on from the run's newest checkpoint.
        reporter: Is told what happens. By default, `imletriton.fit` shows it.

    Returns:
        The run, which holds the trained generator.

    Raises:
        InputError: Something is wrong that the user can mend; nothing was written.
        Fault: Training cannot go on, for example because memory ran out.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped it; the run is saved and can be resumed.
    """
    gc.collect()  # an earlier fit's trainer refers to itself, and may still hold a GPU's memory
    recipe, run_dir = find_recipe(recipe, run_dir, resume)
    check_trackers(recipe.log.trackers)
    chosen_device = choose_device(device)
    set_up(chosen_device)
    run = None
    if torchrun.is_first():
        run, resume = find_run(recipe, run_dir, resume)
    reporter = reporter if reporter and torchrun.is_first() else Reporter()
    if (others := torchrun.processes() - 1) > 0:
        reporter.note(f"Waiting for the other processes: {others}.")
    with joined(chosen_device) as group:
        if group.size > (batch := recipe.train.batch_size):
            raise InputError(f"{group.size} processes cannot share a batch of {batch}: start {batch} at most.")
        resume = group.any(resume, chosen_device)  # also waits: the command line's first process may fetch the pictures
        check_memory(
            recipe,
            wants_bfloat16(recipe.train.precision, chosen_device),
            group.size,
            free_gpu_memory(chosen_device) if chosen_device.type == "cuda" else None,
        )
        reporter.note(f"Reading the data points of {recipe.data.source}.")
        points = load_points(**recipe.data.model_dump(), progress=reporter.pictures)
        weights = f", with {recipe.distance.weights} weights" if recipe.distance.kind == "lpips" else ""
        reporter.note(f"Building the generator and the distance{weights}.")
        trainer = build(recipe, points, chosen_device, group)
        pace = measure_pace(trainer)
        seconds = pace.to_come(trainer)
        if device is None and chosen_device.type == "cpu" and not resume and group.size == 1 and seconds > LONG_ON_CPU:
            raise InputError(
                f"Without a CUDA GPU {recipe.name!r} would take {in_words(seconds)} here: use a GPU or a smaller "
                "recipe, or ask for it with `device='cpu'`."
            )
        measure_fid = None
        if recipe.log.fid_every and group.writes:
            from imletriton.commands.evaluate import PassingFID  # here, as its networks load slowly

            reporter.note("Loading the network of the FID, and measuring the pictures by it.")
            measure_fid = PassingFID(recipe, chosen_device)
        # Signals are waited with before the run's folder is made, so that none leaves an empty one.
        with StopRequest(group, chosen_device) as stop, _locked(run, recipe, trainer) as run:
            group.wait(chosen_device)  # from here on, Ctrl-C stops all processes together
            if resume:
                _resume(trainer, run)
            elif group.writes and (run.recipe_file.exists() or run.checkpoints):  # another process was faster
                raise InputError(
                    f"{run.path} holds a run already: add `resume=True` to go on with it, or name another folder."
                )
            if group.writes:
                write_whole(run.recipe_file, lambda file: file.write_text(recipe.anchored().to_toml()))
            reporter.started(run, trainer, recipe.train.iterations)
            if trainer.compiles:
                reporter.note(f"Compiling for {device_name(chosen_device)}, which takes minutes at each start.")
                if reason := trainer.compile_networks():
                    reporter.note(f"Training goes on without compiling, slower, as that failed ({reason}).")
                pace = measure_pace(trainer)
            reporter.note(_outlook(pace, trainer, recipe))
            if not resume and (advice := _smaller_rounds(pace, trainer)):
                reporter.note(advice)
            try:
                _train(recipe, trainer, run, reporter, stop, measure_fid)
            except Interrupted:
                group.wait(chosen_device)
                raise
            group.wait(chosen_device)
    return run


def _outlook(pace: Pace, trainer: Trainer, recipe: Recipe) -> str:
    """A sentence on the time to come."""
    ahead = in_words(pace.to_come(trainer))
    without = ", without the measurements of the FID" if recipe.log.fid_every else ""
    pool = f"; the first pool takes {in_words(pace.pool)}" if trainer.draws == 0 else ""
    return f"{ahead.capitalize()} to come{without}{pool}."


def _smaller_rounds(pace: Pace, trainer: Trainer) -> str | None:
    """A sentence on how to draw smaller pools, where drawing one takes longer than the steps until the next."""
    settings = trainer.strategy.settings
    if not isinstance(settings, VanillaParameters) or settings.share < 1:
        return None
    steps = min(settings.refresh * trainer.steps_per_epoch, trainer.settings.iterations)
    rounds = min(settings.refresh, trainer.pool.size // trainer.n)  # so that a pool still has n samples
    if rounds == 1 or pace.pool <= steps * pace.step:
        return None
    return (
        f"A pool takes longer than the {steps} steps that it serves: in a new run, "
        f"selection.share={math.ceil(1e4 / rounds) / 1e4} would draw {rounds} times smaller pools {rounds} times as "
        f"often, and so begin {rounds} times sooner."
    )


@contextlib.contextmanager
def _locked(run: Run | None, recipe: Recipe, trainer: Trainer) -> Iterator[Run]:
    """Lock a run, or a new one where it is None, in the process that writes it. All processes must call this."""
    group = trainer.group
    if run is None and group.writes:
        run = runs.new_run(recipe.name)
    run = Run(Path(group.text(str(run.path) if run else "", trainer.device)))
    with _writing_faults(run), run.lock(torchrun.job()) if group.writes else contextlib.nullcontext():
        yield run


def _resume(trainer: Trainer, run: Run) -> None:
    """Bring the trainer to the run's newest checkpoint, where it has one. All processes must call this."""
    _restore(trainer, run)
    step = trainer.group.text(str(trainer.step), trainer.device)
    if step != str(trainer.step):
        raise InputError(
            f"{run.path} has no checkpoint of step {step} on every machine: the machines must share the run's folder."
        )


def _restore(trainer: Trainer, run: Run) -> None:
    """Bring the trainer to the run's newest checkpoint that is whole. Newer ones, which are damaged, are set aside."""
    group = trainer.group

    def restore(folder: Path) -> None:
        try:
            trainer.restore(*load_checkpoint(folder))
        except ValueError as error:
            raise Damaged(f"{folder} is damaged or of another recipe ({error})", MEND) from error

    newest, damaged = newest_whole(run.path, restore) if group.writes else (None, {})
    chosen = group.text(str(newest or ""), trainer.device)
    if not chosen:
        notice(f"{run.path} holds no checkpoint yet, so training begins again at step 0.")
    elif not group.writes:
        restore(Path(chosen))
    for folder, what in damaged.items():
        notice(f"{what}: it is kept as {set_aside(folder).name}, and training goes on from {Path(chosen).name}.")


@contextlib.contextmanager
def _writing_faults(run: Run) -> Iterator[None]:
    """Turn what keeps a run from being written, such as a full disk, into a Fault that says how to go on."""
    try:
        yield
    except FileNotFoundError as error:
        raise Fault(
            f"{run.path} was moved or removed while it was trained, so nothing more can be saved there: where it was "
            "moved, go on in its new place with `resume=True`."
        ) from error
    except OSError as error:
        path = error.filename2 or error.filename or run.path
        raise Fault(
            f"{path} cannot be written ({error.strerror}): mend that, then go on with `resume=True`."
        ) from error


def _train(
    recipe: Recipe,
    trainer: Trainer,
    run: Run,
    reporter: Reporter,
    stop: StopRequest,
    measure_fid: Callable[[Generator, Callable[[int], None]], float] | None,
) -> None:
    """Train until the last step, and write on the way what the recipe's [log] section asks for."""
    total, log, writes = recipe.train.iterations, recipe.log, trainer.group.writes
    relaxed, saved = trainer.relaxed, trainer.step

    def asks_fid(step: int) -> bool:
        return log.fid_every > 0 and step > 0 and (step % log.fid_every == 0 or step == total)

    def fid_progress(done: int) -> None:
        reporter.fid(done, log.fid_samples)
        stop.check()

    def between_steps() -> None:
        """Stop where that was asked for; measure the FID of a checkpoint that has none yet, be it new or restored."""
        stop.check()
        if trainer.step % trainer.steps_per_epoch == 0 or trainer.step % log.every == 0:
            stop.check_together()
        if measure_fid and asks_fid(trainer.step) and saved == trainer.step:
            checkpoint = run.checkpoints[-1]
            if load_state(checkpoint).get("fid") is None:
                with clock.paused():
                    value = measure_fid(trainer.ema, fid_progress)
                lines.write(LogRecord(step=trainer.step, fid=value))
                if checkpoint.exists():  # a user may have removed it
                    note_fid(checkpoint, value)
                reporter.note(f"step {trainer.step}: FID {value:.2f}")

    with RunLog(run, trainer.step, writes, log.trackers, recipe.for_others().model_dump(mode="json")) as lines:
        clock = TrainingClock(trainer)
        try:
            between_steps()
            for event in trainer.loop():
                if isinstance(event, PoolProgress):
                    reporter.pool(event.done, event.size)
                    stop.check()
                    continue
                step = event.step
                reporter.step(step)
                if writes:
                    run.recipe_file.stat()  # raises FileNotFoundError where the run is no longer there
                if trainer.relaxed > relaxed:
                    reporter.note(f"step {step}: every sample was rejected, so the nearest ones were taken.")
                    relaxed = trainer.relaxed
                if step % log.every == 0 or step == total:
                    record = _log_record(trainer, clock)
                    lines.write(record)
                    reporter.log(record)
                if writes and (step % log.samples_every == 0 or step == total):
                    sheet = run.samples / f"{step:06d}.png"
                    with clock.paused():
                        save_samples(sheet, sample_sheet(trainer.ema), trainer.points)
                        lines.picture(step, "samples", sheet)
                # While steps go bad, the step before them may have ruined the weights: the older checkpoints stay.
                if (step % log.checkpoint_every == 0 or step == total or asks_fid(step)) and trainer.healthy:
                    if writes:
                        _save(trainer, run, log.keep)
                    saved = step
                between_steps()
            if saved < total:
                raise Fault("The last steps had no finite gradients: lower train.learning_rate.")
        except StopRequested:
            if writes:
                run.recipe_file.stat()
            if writes and (not run.checkpoints or (trainer.step > saved and trainer.healthy)):
                _save(trainer, run, log.keep)
            chosen = trainer.device.type
            raise Interrupted(run.path, trainer.step, None if chosen == choose_device(None).type else chosen) from None
        except Fault as fault:
            good = run.checkpoints[-1] if run.checkpoints else "none yet"
            raise Fault(f"{fault} The last good checkpoint: {good}.") from fault


class TrainingClock:
    """Measures the speed of training steps alone: pools, searches, sheets of samples and FIDs do not count."""

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


def _log_record(trainer: Trainer, clock: TrainingClock) -> LogRecord:
    """A line of the log, over the steps since the last one. Waits for the device."""
    loss = trainer.take_loss()
    return LogRecord(
        step=trainer.step,
        epoch=trainer.epoch,
        loss=loss,
        images_per_s=clock.take_images_per_s(),
        pool_per_s=trainer.pool_per_s,
        **trainer.take_metrics(),
        bad_steps=int(trainer.bad_steps),
        memory_mb=memory_mb(trainer.device),
    )


def _save(trainer: Trainer, run: Run, keep: int) -> None:
    """Save a checkpoint.

    Raises:
        Fault: Weights are not finite, or the checkpoint cannot be written.
    """
    if not trainer.finite:
        raise Fault(
            f"At step {trainer.step} weights were NaN or infinite, so they were not saved: lower train.learning_rate."
        )
    tensors, state = trainer.state()
    save_checkpoint(
        run.path,
        trainer.step,
        trainer.ema,
        tensors,
        state | {"environment": environment(trainer.device)},
        keep,
    )
