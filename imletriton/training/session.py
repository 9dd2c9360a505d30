"""What happens between the steps of a training: the log, sheets of samples, checkpoints, the FID, and stopping."""

import time
from typing import TYPE_CHECKING

from imletriton.errors import Fault, Interrupted
from imletriton.plotting.grids import sample_sheet, save_samples
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import load_state, note_fid
from imletriton.runs.log import RunLog
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord
from imletriton.system.device import choose_device, memory_mb
from imletriton.system.stopping import StopRequest, StopRequested
from imletriton.training.calibration import calibrate
from imletriton.training.pace import Deadline, StepLimit, TrainingClock
from imletriton.training.reporter import Reporter
from imletriton.training.state import save
from imletriton.training.trainer import PoolProgress, Trainer
from imletriton.training.watch import Watch

if TYPE_CHECKING:  # its network loads slowly
    from imletriton.training.fid import TrainingFID


class Session:
    """Trains until the end, and does between the steps what the recipe's [log] section asks for.

    Args:
        recipe: The recipe.
        trainer: Its trainer, at step 0 or at a checkpoint.
        watch: Measures the distances between samples and data.
        run: The run that is written, and locked by this process.
        reporter: Is told what happens.
        stop: Says whether a signal has asked to stop.
        end: Says when training ends.
        measure_fid: Measures the FID, in the process that writes; None where the recipe does not ask for it.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        watch: Watch,
        run: Run,
        reporter: Reporter,
        stop: StopRequest,
        end: StepLimit | Deadline,
        measure_fid: "TrainingFID | None" = None,
    ) -> None:
        self.recipe, self.trainer, self.watch, self.run = recipe, trainer, watch, run
        self.reporter, self.stop, self.end, self.measure_fid = reporter, stop, end, measure_fid
        self.log, self.writes = recipe.log, trainer.group.writes
        self.total = recipe.train.iterations  # steps that there will be, as far as is known
        self.saved = trainer.step  # the step of the newest checkpoint
        self.relaxed = trainer.relaxed  # rounds in which every sample was rejected, as last reported
        self.began = time.perf_counter()
        self.clock = TrainingClock(trainer)
        self.last = self.is_stale or trainer.step >= end.last_step  # whether the newest step is the last one

    @property
    def is_stale(self) -> bool:
        """Whether the distances have not improved for as long as the recipe has patience."""
        return self.watch.is_over(self.recipe.train.patience)

    def train(self) -> None:
        """Train until the end.

        Raises:
            Interrupted: A signal stopped the training; the run is saved.
            Fault: Training cannot go on; the message names the last good checkpoint.
        """
        values = self.recipe.for_others().model_dump(mode="json")
        with RunLog(self.run, self.trainer.step, self.writes, self.log.trackers, values) as self.lines:
            try:
                self.between_steps()
                for event in () if self.is_stale else self.trainer.loop(self.end.last_step):
                    if isinstance(event, PoolProgress):
                        self.reporter.pool(event.done, event.size)
                        self.stop.check()
                        continue
                    self.after_step(event.step)
                    self.between_steps()
                    if self.last:
                        break
                if self.saved < self.trainer.step:
                    raise Fault("The last steps had no finite gradients: lower train.learning_rate.")
                if self.is_stale:
                    self.reporter.note(self.watch.verdict)
            except StopRequested:
                self.save_interrupted()
                chosen = self.trainer.device.type
                device = None if chosen == choose_device(None).type else chosen
                raise Interrupted(self.run.path, self.trainer.step, device) from None
            except Fault as fault:
                good = self.run.checkpoints[-1] if self.run.checkpoints else "none yet"
                raise Fault(f"{fault} The last good checkpoint: {good}.") from fault

    def after_step(self, step: int) -> None:
        """Report a step, decide whether it is the last one, and write what is due."""
        self.reporter.step(step)
        if self.writes:
            self.run.recipe_file.stat()  # raises FileNotFoundError where the run's folder is no longer there
        if self.trainer.relaxed > self.relaxed:
            self.relaxed = self.trainer.relaxed
            self.reporter.note(f"step {step}: every sample was rejected, so the nearest ones were taken.")
        if self.is_due(self.log.measure_every):
            self.measure_distances()
        self.last = self.end.reached(self.trainer, self.processes_meet) or self.is_stale
        with self.end.writing():
            if self.is_due(self.log.every) or self.last:
                self.write_log()
            saves = self.is_due(self.log.checkpoint_every) or self.last or self.wants_fid
            if self.recipe.train.calibrate and self.trainer.healthy and (saves or self.is_due(self.log.samples_every)):
                with self.clock.paused():
                    self.lines.write(LogRecord(step=step, spread=calibrate(self.trainer)))
            if self.writes and (self.is_due(self.log.samples_every) or self.last):
                self.draw_samples()
            # While steps go bad, the step before them may have ruined the weights: the older checkpoints stay.
            if saves and self.trainer.healthy:
                self.save_checkpoint()

    def between_steps(self) -> None:
        """Stop where that was asked for; measure the FID of a checkpoint that has none yet, be it new or restored."""
        self.stop.check()
        if self.processes_meet:
            self.stop.check_together()
        step = self.trainer.step
        if not (self.measure_fid and self.wants_fid and self.saved == step):
            return
        checkpoint = self.run.checkpoints[-1]
        if load_state(checkpoint).get("fid") is None:
            with self.clock.paused():
                value = self.measure_fid(self.trainer.ema, self.fid_progress)
            self.lines.write(LogRecord(step=step, fid=value))
            if checkpoint.exists():  # a user may have removed it
                note_fid(checkpoint, value)
            self.reporter.note(f"step {step}: FID {value:.2f}")

    def is_due(self, every: int) -> bool:
        """Whether something is due after this step that happens every so many steps; 0: never."""
        return every > 0 and self.trainer.step % every == 0

    @property
    def processes_meet(self) -> bool:
        """Whether several processes agree after this step on whether to go on."""
        return self.trainer.step % self.trainer.steps_per_epoch == 0 or self.is_due(self.log.every)

    @property
    def wants_fid(self) -> bool:
        """Whether the FID is due after this step; at a deadline, there would be no time for it."""
        at_end = self.last and not self.end.timed
        return self.log.fid_every > 0 and self.trainer.step > 0 and (self.is_due(self.log.fid_every) or at_end)

    def fid_progress(self, done: int) -> None:
        """Report how many samples the FID has looked at, and stop where that was asked for."""
        self.reporter.fid(done, self.log.fid_samples)
        self.stop.check()

    def measure_distances(self) -> None:
        """Measure how far samples are from the data; log and report it."""
        with self.clock.paused():
            figures = self.watch.measure()
        if figures:
            self.lines.write(record := LogRecord(step=self.trainer.step, **figures))
            self.reporter.distances(record)

    def write_log(self) -> None:
        """Write and report a line of the log, over the steps since the last one. Waits for the device."""
        trainer = self.trainer
        if self.end.timed:
            self.total = trainer.step if self.last else self.end.total(trainer, self.total)
            self.reporter.total(self.total)
        loss = trainer.take_loss()
        record = LogRecord(
            step=trainer.step,
            epoch=trainer.epoch,
            loss=loss,
            seconds=round(time.perf_counter() - self.began, 3),
            images_per_s=self.clock.take_images_per_s(),
            pool_per_s=trainer.pool_per_s,
            **trainer.take_metrics(),
            bad_steps=int(trainer.bad_steps),
            memory_mb=memory_mb(trainer.device),
        )
        self.lines.write(record)
        self.reporter.log(record)

    def draw_samples(self) -> None:
        """Write a sheet of samples."""
        sheet = self.run.samples / f"{self.trainer.step:06d}.png"
        with self.clock.paused():
            save_samples(sheet, sample_sheet(self.trainer.ema), self.trainer.points)
            self.lines.picture(self.trainer.step, "samples", sheet)

    def save_checkpoint(self) -> None:
        """Save a checkpoint; where time decides on the number of steps, the recipe with their newest estimate too."""
        if self.writes:
            if self.end.timed:
                write_recipe(self.recipe, self.run, max(self.trainer.step, self.total))
            save(self.trainer, self.watch, self.run, self.log.keep)
        self.saved = self.trainer.step

    def save_interrupted(self) -> None:
        """Save what a signal has interrupted, unless it is saved already or its last step went bad."""
        if not self.writes:
            return
        self.run.recipe_file.stat()
        if self.end.timed:
            write_recipe(self.recipe, self.run, max(self.trainer.step, self.total))
        if not self.run.checkpoints or (self.trainer.step > self.saved and self.trainer.healthy):
            save(self.trainer, self.watch, self.run, self.log.keep)


def write_recipe(recipe: Recipe, run: Run, steps: int | None = None) -> None:
    """Write the recipe of a run; with another number of steps, where time decides on that."""
    recipe = recipe.anchored() if steps is None else recipe.anchored().with_iterations(steps)
    write_whole(run.recipe_file, lambda file: file.write_text(recipe.to_toml()))
