"""From a recipe to a trained run: what `imletriton.fit` and the command line call."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from imletriton.commands.checks import find_pictures, find_recipe, find_run
from imletriton.data import held_out, load_points, training_part
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
from imletriton.system.registry import MANY
from imletriton.system.stopping import StopRequest, StopRequested
from imletriton.training.build import build
from imletriton.training.calibration import calibrate
from imletriton.training.memory import check_memory
from imletriton.training.pace import Deadline, TrainingClock, in_words, measure_pace, outlook, smaller_rounds
from imletriton.training.planning import check_minutes, plan
from imletriton.training.reporter import Reporter
from imletriton.training.trainer import PoolProgress, Trainer
from imletriton.training.watch import Watch

LONG_ON_CPU = 24 * 3600  # seconds; what takes longer must be asked for


@telling_of_memory
def fit(
    recipe: Recipe | str | Path | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    minutes: float | None = None,
) -> Run:
    """Train a generator as a recipe says.

    Under torchrun, the processes train one run together; the first one writes and reports. Processes that torchrun has
    restarted go on with the run that they had begun.

    Args:
        recipe: What to train, on which data points, and how; or its file, or the name of a recipe that comes with
            imletriton; or a folder of pictures, for which `plan` makes a recipe. With `resume`, a run's folder will do,
            or nothing for the run in `run_dir`, by default the newest: its own recipe is taken.
        run_dir: The run's folder; by default runs/NAME-001 and so on, and with `resume` the newest run of that name.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        resume: Go on from the run's newest checkpoint.
        reporter: Is told what happens. By default, `imletriton.fit` shows it.
        minutes: End after so many minutes from this call, its last checkpoint included, instead of after
            `train.iterations` steps. The run's recipe then has the number of steps that were done. A folder of pictures
            is trained on for 30 minutes by default, and for 120 on a GPU.

    Returns:
        The run, which holds the trained generator.

    Raises:
        InputError: Something is wrong that the user can mend; nothing was written.
        Fault: Training cannot go on, for example because memory ran out.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped it; the run is saved and can be resumed.
    """
    check_minutes(minutes)
    began = time.perf_counter()
    gc.collect()  # an earlier fit's trainer refers to itself, and may still hold a GPU's memory
    if folder := find_pictures(recipe, resume):
        planned = plan(folder, minutes, device=device, note=(reporter or Reporter()).note)
        recipe, minutes = planned.recipe, planned.minutes
        (reporter or Reporter()).note("\n".join(planned.lines))
    deadline = None if minutes is None else Deadline(60 * minutes - (time.perf_counter() - began))
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
        data = recipe.data
        pictures = load_points(data.source, data.resolution, progress=reporter.pictures)
        points = training_part(pictures, data.mirror, data.holdout)
        weights = f", with {recipe.distance.weights} weights" if recipe.distance.kind == "lpips" else ""
        reporter.note(f"Building the generator and the distance{weights}.")
        trainer = build(recipe, points, chosen_device, group)
        watch = Watch(trainer, held_out(pictures, data.holdout) if data.holdout else None)
        del pictures
        pace = measure_pace(trainer)
        seconds = pace.to_come(trainer)
        unasked = device is None and minutes is None and not resume and group.size == 1
        if unasked and chosen_device.type == "cpu" and seconds > LONG_ON_CPU:
            raise InputError(
                f"Without a CUDA GPU {recipe.name!r} would take {in_words(seconds)} here: use a GPU or a smaller "
                "recipe, or ask for it with `device='cpu'`."
            )
        measure_fid = None
        if recipe.log.fid_every and group.writes:
            from imletriton.training.fid import TrainingFID  # here, as its networks load slowly

            reporter.note("Loading the network of the FID, and measuring the pictures by it.")
            measure_fid = TrainingFID(recipe, chosen_device)
        # Signals are waited with before the run's folder is made, so that none leaves an empty one.
        with StopRequest(group, chosen_device) as stop, _locked(run, recipe, trainer) as run:
            group.wait(chosen_device)  # from here on, Ctrl-C stops all processes together
            if resume:
                _resume(trainer, watch, run)
            elif group.writes and (run.recipe_file.exists() or run.checkpoints):  # another process was faster
                raise InputError(
                    f"{run.path} holds a run already: add `resume=True` to go on with it, or name another folder."
                )
            if group.writes:
                _write_recipe(recipe, run)
            reporter.started(run, trainer, recipe.train.iterations)
            if trainer.compiles:
                reporter.note(f"Compiling for {device_name(chosen_device)}, which takes minutes at each start.")
                if reason := trainer.compile_networks():
                    reporter.note(f"Training goes on without compiling, slower, as that failed ({reason}).")
                pace = measure_pace(trainer)
            reporter.note(deadline.outlook if deadline else outlook(pace, trainer, recipe))
            if not resume and (advice := smaller_rounds(pace, trainer)):
                reporter.note(advice)
            try:
                _train(recipe, trainer, watch, run, reporter, stop, measure_fid, deadline)
            except Interrupted:
                group.wait(chosen_device)
                raise
            group.wait(chosen_device)
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


def _write_recipe(recipe: Recipe, run: Run, steps: int | None = None) -> None:
    """Write the recipe of a run; with another number of steps, where time decides on that."""
    recipe = recipe.anchored() if steps is None else recipe.anchored().with_iterations(steps)
    write_whole(run.recipe_file, lambda file: file.write_text(recipe.to_toml()))


def _resume(trainer: Trainer, watch: Watch, run: Run) -> None:
    """Bring the trainer to the run's newest checkpoint, where it has one. All processes must call this."""
    _restore(trainer, watch, run)
    step = trainer.group.text(str(trainer.step), trainer.device)
    if step != str(trainer.step):
        raise InputError(
            f"{run.path} has no checkpoint of step {step} on every machine: the machines must share the run's folder."
        )


def _restore(trainer: Trainer, watch: Watch, run: Run) -> None:
    """Bring the trainer to the run's newest checkpoint that is whole. Newer ones, which are damaged, are set aside."""
    group = trainer.group

    def restore(folder: Path) -> None:
        try:
            weights, tensors, state = load_checkpoint(folder)
            trainer.restore(weights, tensors, state)
            watch.restore(state)
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
    watch: Watch,
    run: Run,
    reporter: Reporter,
    stop: StopRequest,
    measure_fid: Callable[[Generator, Callable[[int], None]], float] | None,
    deadline: Deadline | None,
) -> None:
    """Train until the last step, and write on the way what the recipe's [log] section asks for."""
    total, log, patience = recipe.train.iterations, recipe.log, recipe.train.patience
    group, writes = trainer.group, trainer.group.writes
    relaxed, saved, began = trainer.relaxed, trainer.step, time.perf_counter()
    clock = TrainingClock(trainer)
    if deadline:  # which then decides
        trainer.settings = trainer.settings.model_copy(update={"iterations": MANY})

    def meets(step: int) -> bool:
        """Whether several processes agree after this step on whether to go on."""
        return step % trainer.steps_per_epoch == 0 or step % log.every == 0

    def is_last(step: int) -> bool:
        if deadline is None:
            return step == total or watch.is_over(patience)
        comes = (group.size == 1 or meets(step)) and group.any(writes and deadline.comes(trainer), trainer.device)
        return comes or watch.is_over(patience)

    def asks_fid(step: int) -> bool:
        at_end = last and deadline is None  # for which there would be no time
        return log.fid_every > 0 and step > 0 and (step % log.fid_every == 0 or at_end)

    def fid_progress(done: int) -> None:
        reporter.fid(done, log.fid_samples)
        stop.check()

    def between_steps() -> None:
        """Stop where that was asked for; measure the FID of a checkpoint that has none yet, be it new or restored."""
        stop.check()
        if meets(trainer.step):
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

    def measure(step: int) -> None:
        """Measure how far samples are from the data; log and report it."""
        with clock.paused():
            figures = watch.measure()
        if figures:
            lines.write(record := LogRecord(step=step, **figures))
            reporter.distances(record)

    def write_out(step: int) -> None:
        """Write what is due after a step."""
        nonlocal saved, total
        if step % log.every == 0 or last:
            if deadline:
                reporter.total(total := step if last else deadline.total(trainer, total))
            record = _log_record(trainer, clock, time.perf_counter() - began)
            lines.write(record)
            reporter.log(record)
        saves = step % log.checkpoint_every == 0 or last or asks_fid(step)
        if recipe.train.calibrate and trainer.healthy and (saves or step % log.samples_every == 0):
            with clock.paused():
                lines.write(LogRecord(step=step, spread=calibrate(trainer)))
        if writes and (step % log.samples_every == 0 or last):
            sheet = run.samples / f"{step:06d}.png"
            with clock.paused():
                save_samples(sheet, sample_sheet(trainer.ema), trainer.points)
                lines.picture(step, "samples", sheet)
        # While steps go bad, the step before them may have ruined the weights: the older checkpoints stay.
        if saves and trainer.healthy:
            if writes:
                if deadline:
                    _write_recipe(recipe, run, max(step, total))
                _save(trainer, watch, run, log.keep)
            saved = step

    last = watch.is_over(patience) or (trainer.step == total and deadline is None)
    with RunLog(run, trainer.step, writes, log.trackers, recipe.for_others().model_dump(mode="json")) as lines:
        try:
            between_steps()
            for event in () if watch.is_over(patience) else trainer.loop():
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
                if log.measure_every and step % log.measure_every == 0:
                    measure(step)
                last = is_last(step)
                with deadline.writes() if deadline else contextlib.nullcontext():
                    write_out(step)
                between_steps()
                if last:
                    break
            if saved < trainer.step:
                raise Fault("The last steps had no finite gradients: lower train.learning_rate.")
            if watch.is_over(patience):
                reporter.note(watch.verdict)
        except StopRequested:
            if writes:
                run.recipe_file.stat()
                if deadline:
                    _write_recipe(recipe, run, max(trainer.step, total))
            if writes and (not run.checkpoints or (trainer.step > saved and trainer.healthy)):
                _save(trainer, watch, run, log.keep)
            chosen = trainer.device.type
            raise Interrupted(run.path, trainer.step, None if chosen == choose_device(None).type else chosen) from None
        except Fault as fault:
            good = run.checkpoints[-1] if run.checkpoints else "none yet"
            raise Fault(f"{fault} The last good checkpoint: {good}.") from fault


def _log_record(trainer: Trainer, clock: TrainingClock, seconds: float) -> LogRecord:
    """A line of the log, over the steps since the last one. Waits for the device.

    Args:
        trainer: The trainer.
        clock: Measures its speed.
        seconds: Since this process began to train.
    """
    loss = trainer.take_loss()
    return LogRecord(
        step=trainer.step,
        epoch=trainer.epoch,
        loss=loss,
        seconds=round(seconds, 3),
        images_per_s=clock.take_images_per_s(),
        pool_per_s=trainer.pool_per_s,
        **trainer.take_metrics(),
        bad_steps=int(trainer.bad_steps),
        memory_mb=memory_mb(trainer.device),
    )


def _save(trainer: Trainer, watch: Watch, run: Run, keep: int) -> None:
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
        state | watch.state() | {"environment": environment(trainer.device)},
        keep,
    )
