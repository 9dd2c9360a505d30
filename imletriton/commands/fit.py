"""From a recipe to a trained run: what `imletriton.fit` and the command line call."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from imletriton.build import build
from imletriton.commands.checks import find_run
from imletriton.commands.memory import check_memory
from imletriton.commands.reporter import Reporter
from imletriton.data import load_points
from imletriton.errors import Fault, InputError, Interrupted
from imletriton.generator import Generator
from imletriton.plotting.grids import sample_sheet, save_samples
from imletriton.recipe import Recipe
from imletriton.runs import run as runs
from imletriton.runs.checkpoint import load_checkpoint, load_state, note_fid, save_checkpoint
from imletriton.runs.log import RunLog
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord
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


def fit(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train a generator as a recipe says.

    Under torchrun, the processes train one run together; the first one writes and reports.

    Args:
        recipe: What to train, on which data points, and how.
        run_dir: The run's folder; by default runs/NAME-001 and so on, and with `resume` the newest run of that name.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        resume: Go on from the run's newest checkpoint.
        reporter: Is told what happens.

    Returns:
        The run, which holds the trained generator.

    Raises:
        InputError: Something is wrong that the user can mend; nothing was written.
        Fault: Training cannot go on.
        Interrupted: Ctrl-C or SIGTERM stopped it; the run is saved and can be resumed.
    """
    gc.collect()  # an earlier fit's trainer refers to itself, and may still hold a GPU's memory
    chosen_device = choose_device(device)
    set_up(chosen_device)
    run = find_run(recipe, run_dir, resume)
    with joined(chosen_device) as group:
        if group.size > (batch := recipe.train.batch_size):
            raise InputError(f"{group.size} processes cannot share a batch of {batch}: start {batch} at most.")
        group.wait(chosen_device)  # the command line's first process may be fetching the pictures
        check_memory(
            recipe,
            wants_bfloat16(recipe.train.precision, chosen_device),
            group.size,
            free_gpu_memory(chosen_device) if chosen_device.type == "cuda" else None,
        )
        points = load_points(**recipe.data.model_dump())
        trainer = build(recipe, points, chosen_device, group)
        if device is None and chosen_device.type == "cpu" and not resume and group.size == 1:
            _refuse_days(trainer, recipe)
        measure_fid = None
        if recipe.log.fid_every and group.writes:
            from imletriton.commands.evaluate import PassingFID  # here, as its networks load slowly

            measure_fid = PassingFID(recipe, chosen_device)
        if run is None:
            path = str(runs.new_run(recipe.name).path) if group.writes else ""
            run = Run(Path(group.text(path, chosen_device)))
        reporter = reporter if reporter and group.writes else Reporter()
        lock = run.lock() if group.writes else contextlib.nullcontext()
        with lock, StopRequest(group, chosen_device) as stop, _writing_faults(run):
            group.wait(chosen_device)  # from here on, Ctrl-C stops all processes together
            if resume:
                _restore(trainer, run)
            elif group.writes and (run.recipe_file.exists() or run.checkpoints):  # another process was faster
                raise InputError(
                    f"{run.path} holds a run already: add `resume=True` to go on with it, or name another folder."
                )
            if group.writes:
                write_whole(run.recipe_file, lambda file: file.write_text(recipe.to_toml()))
            reporter.started(run, trainer, recipe.train.iterations)
            if trainer.compiles:
                reporter.note(f"Compiling for {device_name(chosen_device)}, which takes minutes at each start.")
                if reason := trainer.compile_networks():
                    reporter.note(f"Training goes on without compiling, slower, as that failed ({reason}).")
            try:
                _train(recipe, trainer, run, reporter, stop, measure_fid)
            except Interrupted:
                group.wait(chosen_device)
                raise
            group.wait(chosen_device)
    return run


def _restore(trainer: Trainer, run: Run) -> None:
    """Bring the trainer to the run's newest checkpoint, where it has one."""
    folder = runs.newest_checkpoint(run.path)
    if folder is None:
        return
    try:
        trainer.restore(*load_checkpoint(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} does not fit this recipe: remove it to go on from the one before.") from error


@contextlib.contextmanager
def _writing_faults(run: Run) -> Iterator[None]:
    """Turn what keeps a run from being written, such as a full disk, into a Fault that says how to go on."""
    try:
        yield
    except OSError as error:
        path = error.filename or run.path
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
    clock = TrainingClock(trainer)

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
                note_fid(checkpoint, value)
                reporter.note(f"step {trainer.step}: FID {value:.2f}")

    with RunLog(run, trainer.step, writes) as lines:
        try:
            between_steps()
            for event in trainer.loop():
                if isinstance(event, PoolProgress):
                    reporter.pool(event.done, event.size)
                    stop.check()
                    continue
                step = event.step
                reporter.step(step)
                if trainer.relaxed > relaxed:
                    reporter.note(f"step {step}: every sample was rejected, so the nearest ones were taken.")
                    relaxed = trainer.relaxed
                if step % log.every == 0 or step == total:
                    record = _log_record(trainer, clock)
                    lines.write(record)
                    reporter.log(record)
                if writes and (step % log.samples_every == 0 or step == total):
                    save_samples(run.samples / f"{step:06d}.png", sample_sheet(trainer.ema), trainer.points)
                # While steps go bad, the step before them may have ruined the weights: the older checkpoints stay.
                if (step % log.checkpoint_every == 0 or step == total or asks_fid(step)) and trainer.healthy:
                    if writes:
                        _save(trainer, run, log.keep)
                    saved = step
                between_steps()
            if saved < total:
                raise Fault("The last steps had no finite gradients: lower train.learning_rate.")
        except StopRequested:
            if writes and (not run.checkpoints or (trainer.step > saved and trainer.healthy)):
                _save(trainer, run, log.keep)
            raise Interrupted(run.path, trainer.step, trainer.device.type) from None
        except Fault as fault:
            good = run.checkpoints[-1] if run.checkpoints else "none yet"
            raise Fault(f"{fault} The last good checkpoint: {good}.") from fault


class TrainingClock:
    """Measures the speed of training steps alone: pools, searches and FID measurements do not count."""

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
    tensors, state = trainer.state()
    save_checkpoint(
        run.path,
        trainer.step,
        trainer.ema,
        tensors,
        state | {"environment": environment(trainer.device)},
        keep,
    )


def _refuse_days(trainer: Trainer, recipe: Recipe) -> None:
    """Measure two steps, after one to warm up, and raise InputError where all steps would take over a day."""
    with trainer.unchanged():
        trainer.train_step()
        began = time.perf_counter()
        trainer.train_step()
        trainer.train_step()
        seconds = (time.perf_counter() - began) / 2 * recipe.train.iterations
    if seconds > LONG_ON_CPU:
        raise InputError(
            f"Without a CUDA GPU the {recipe.train.iterations} steps of {recipe.name!r} would take about "
            f"{seconds / 86400:.0f} days here, and its pools come on top: use a GPU or a smaller recipe, or ask for "
            "it with `device='cpu'`."
        )
