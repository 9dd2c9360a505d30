"""From a recipe to a trained run: what `imletriton.fit` and the command line call."""

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from imletriton.build import build
from imletriton.commands.checks import find_run
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
from imletriton.system.device import choose_device, device_name, environment, keep_freed_memory, memory_mb
from imletriton.system.distributed import joined
from imletriton.system.stopping import StopRequest, StopRequested
from imletriton.trainer import Trainer

LONG_ON_CPU = 24 * 3600  # seconds; what takes longer must be asked for


class Reporter:
    """What a fit tells as it goes; override what you want to hear."""

    def started(self, run: Run, trainer: Trainer, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def pool(self, done: int, total: int) -> None: ...

    def fid(self, done: int, total: int) -> None: ...

    def step(self, step: int) -> None: ...

    def log(self, record: LogRecord) -> None: ...


def fit(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train as a recipe says; returns the run.

    run_dir: where; by default runs/NAME-001 and so on (resume: the newest of the name). device: cuda where there is
    one, else cpu. resume: go on from the run's newest checkpoint. Raises InputError for what the user can mend, Fault
    where training cannot go on, Interrupted after Ctrl-C or SIGTERM (the run is saved and can be resumed). Started by
    torchrun, the processes train one run together; the first one writes and reports.
    """
    gc.collect()  # a trainer refers to itself: an earlier fit's may hold a GPU's memory still
    place = choose_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    found = find_run(recipe, run_dir, resume)
    with joined(place) as group:
        if group.size > (batch := recipe.train.batch_size):
            raise InputError(f"{group.size} processes share a batch of {batch}: start {batch} at most.")
        group.wait(place)  # the command line's first process may be fetching the pictures
        points = load_points(**recipe.data.model_dump())
        trainer = build(recipe, points, place, group)
        if device is None and place.type == "cpu" and not resume and group.size == 1:
            _refuse_days(trainer, recipe)
        fid = None
        if recipe.log.fid_every and group.writes:
            from imletriton.commands.evaluate import PassingFID  # here, as its networks load slowly

            fid = PassingFID(recipe, place)
        run = found or Run(Path(group.text(str(runs.new_run(recipe.name).path) if group.writes else "", place)))
        told = reporter if reporter and group.writes else Reporter()
        lock = run.lock() if group.writes else contextlib.nullcontext()
        with lock, StopRequest(group, place) as stop, _told_as_fault(run):
            if resume:
                _restore(trainer, run)
            elif group.writes and (run.recipe_file.exists() or run.checkpoints):  # another process was faster
                raise InputError(
                    f"{run.path} holds a run already: add `resume=True` to go on with it, or name another folder."
                )
            if group.writes:
                write_whole(run.recipe_file, lambda file: file.write_text(recipe.to_toml()))
            told.started(run, trainer, recipe.train.iterations)
            if trainer.compiles:
                told.note(f"Compiling for {device_name(place)}: once a start, it takes minutes.")
                if why := trainer.compile():
                    told.note(f"It cannot be compiled ({why}): training goes on without, slower.")
            try:
                _loop(recipe, trainer, run, told, stop, fid)
            except Interrupted:
                group.wait(place)
                raise
            group.wait(place)
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
def _told_as_fault(run: Run) -> Iterator[None]:
    """Tell what keeps a run from being written, such as a full disk, as a Fault that says how to go on."""
    try:
        yield
    except OSError as error:
        where = error.filename or run.path
        raise Fault(
            f"{where} cannot be written ({error.strerror}): mend that, then go on with `resume=True`."
        ) from error


def _loop(
    recipe: Recipe,
    trainer: Trainer,
    run: Run,
    reporter: Reporter,
    stop: StopRequest,
    fid: Callable[[Generator, Callable[[int], None]], float] | None,
) -> None:
    """Rounds and steps until the last one, with everything that is written on the way."""
    total, log, writes = recipe.train.iterations, recipe.log, trainer.group.writes

    def pool_progress(done: int) -> None:
        reporter.pool(done, trainer.pool.size)
        stop.check()

    def fid_progress(done: int) -> None:
        reporter.fid(done, log.fid_samples)
        stop.check()

    def asks_fid(step: int) -> bool:
        return log.fid_every > 0 and step > 0 and (step % log.fid_every == 0 or step == total)

    def measure_fid(lines: RunLog) -> None:
        """Measure a checkpoint that has none yet, new or restored: a run stopped at it catches up when resumed."""
        if fid and load_state(checkpoint := run.checkpoints[-1]).get("fid") is None:
            found = fid(trainer.ema, fid_progress)
            lines.write(LogRecord(step=trainer.step, fid=found))
            note_fid(checkpoint, found)
            reporter.note(f"step {trainer.step}: FID {found:.2f}")

    with RunLog(run, trainer.step, writes) as lines:
        saved = trainer.step
        began, began_step = time.perf_counter(), trainer.step
        try:
            while True:
                stop.check()
                if trainer.step % trainer.steps_per_epoch == 0 or trainer.step % log.every == 0:
                    stop.check_together()
                if asks_fid(trainer.step) and saved == trainer.step:
                    paused = time.perf_counter()
                    measure_fid(lines)
                    began += time.perf_counter() - paused
                if trainer.step >= total:
                    break
                if trainer.step % trainer.steps_per_epoch == 0:
                    trainer.synchronize()
                    paused = time.perf_counter()
                    relaxed = trainer.relaxed
                    trainer.start_epoch(pool_progress)
                    began += time.perf_counter() - paused  # the pool does not count as training time
                    if trainer.relaxed > relaxed:
                        reporter.note(f"step {trainer.step}: every sample was rejected; the nearest ones were taken.")
                trainer.train_step()
                step = trainer.step
                reporter.step(step)
                if step % log.every == 0 or step == total:
                    loss = trainer.take_loss()
                    record = LogRecord(
                        step=step,
                        epoch=trainer.epoch,
                        loss=loss,
                        images_per_s=(step - began_step) * trainer.batch / (time.perf_counter() - began),
                        pool_per_s=trainer.pool_per_s,
                        **trainer.take_figures(),
                        bad_steps=int(trainer.bad_steps),
                        memory_mb=memory_mb(trainer.device),
                    )
                    lines.write(record)
                    reporter.log(record)
                    began, began_step = time.perf_counter(), step
                if writes and (step % log.samples_every == 0 or step == total):
                    save_samples(run.samples / f"{step:06d}.png", sample_sheet(trainer.ema), trainer.points)
                # While steps go bad, the step before them may have ruined the weights: the older checkpoints stay.
                if (step % log.checkpoint_every == 0 or step == total or asks_fid(step)) and trainer.healthy:
                    if writes:
                        _save(trainer, run, log.keep)
                    saved = step
            if saved < total:
                raise Fault("The last steps had no finite gradients: lower train.learning_rate.")
        except StopRequested:
            if writes and (not run.checkpoints or (trainer.step > saved and trainer.healthy)):
                _save(trainer, run, log.keep)
            raise Interrupted(run.path, trainer.step, trainer.device.type) from None
        except Fault as fault:
            good = run.checkpoints[-1] if run.checkpoints else "none yet"
            raise Fault(f"{fault} The last good checkpoint: {good}.") from fault


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
    """Measure two steps, after one to warm up; raise InputError where the whole would take over a day."""
    ema, (tensors, state) = copy.deepcopy(trainer.ema.state_dict()), copy.deepcopy(trainer.state())
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
    trainer.restore(ema, tensors, state)
