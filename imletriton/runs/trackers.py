"""Where people look at a training: TensorBoard, Weights & Biases (wandb) and Trackio, all with the keys of log.jsonl.

Each tracker goes on with what it has of a run when that is resumed. TensorBoard's files lie in the run's folder; the
others know the run by `Run.tracker_id`.
"""

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from imletriton.errors import InputError
from imletriton.runs.run import Run, write_whole

PROJECT = "imletriton"  # the name under which wandb and Trackio keep runs together


class Tracker(Protocol):
    """What a training is told to while it goes on. Any exception of a method is a failure of the tracker.

    Args:
        run: The run.
        step: The step that training starts from; 0 for a new run.
        config: The recipe, as plain values.
    """

    def __init__(self, run: Run, step: int, config: Mapping[str, Any]) -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step, by the keys of `LogRecord`."""

    def picture(self, step: int, name: str, file: Path) -> None:
        """Take a PNG file of a step."""

    def close(self, failed: bool) -> None:
        """Write all that is left; `failed` says that training ended by an exception."""


class TensorBoard:
    """TensorBoard's events in the run's folder."""

    def __init__(self, run: Run, step: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with contextlib.ExitStack() as stack:
            stack.enter_context(_no_tracebacks_of_tensorboard())
            self.board = stack.enter_context(SummaryWriter(str(run.path), purge_step=step + 1))
            self.opened = stack.pop_all()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, file: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            self.board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self.opened.close()


class WeightsAndBiases:
    """A run of wandb, whose files lie in the run's folder; WANDB_PROJECT, WANDB_MODE and the like say where it goes."""

    def __init__(self, run: Run, step: int, config: Mapping[str, Any]) -> None:
        import wandb

        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=tracker_id(run),
            name=run.path.resolve().name,
            dir=run.path,
            config=dict(config),
            resume="allow",
            reinit="create_new",  # a program that trains may have a run of its own
            settings=wandb.Settings(console="off", quiet=True),  # output is the command's; wandb tells its address only
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=max(step, self.run.step))  # wandb drops what is earlier than its own step

    def picture(self, step: int, name: str, file: Path) -> None:
        self.run.log({name: self.image(str(file))}, step=max(step, self.run.step))

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, which keeps it below TRACKIO_DIR, or in a Space that TRACKIO_SPACE_ID names."""

    def __init__(self, run: Run, step: int, config: Mapping[str, Any]) -> None:
        import trackio

        self.image, self.finish = trackio.Image, trackio.finish
        name = tracker_id(run)  # by which Trackio finds a run again
        self.run = trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow", embed=False)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        self.run.log({name: self.image(str(file))}, step=step)

    def close(self, failed: bool) -> None:
        self.finish()  # type: ignore[no-untyped-call]


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that the packages of trackers are installed, without importing them.

    Raises:
        InputError: One is not. The message has the command that installs it.
    """
    for name in names:
        try:
            version(name)  # a folder wandb/, as a run has it, could be imported by this name too
        except PackageNotFoundError:
            raise InputError(
                f'log.trackers names {name}, which is not installed: run `pip install "imletriton[{name}]"`, or leave it '
                "out of log.trackers."
            ) from None


def tracker_id(run: Run) -> str:
    """The name by which trackers know a run, wherever it is moved; the first call makes it and writes it down."""
    file = run.tracker_id_file
    known = file.read_text("utf-8", "replace").strip() if file.is_file() else ""
    if re.fullmatch(r"[\w.-]{1,120}", known, re.ASCII):
        return known
    made = f"{run.path.resolve().name[:100]}-{secrets.token_hex(4)}"
    made = re.sub(r"[^\w.-]", "-", made, flags=re.ASCII)
    write_whole(file, lambda path: path.write_text(made + "\n"))
    return made


@contextlib.contextmanager
def _no_tracebacks_of_tensorboard() -> Iterator[None]:
    """Leave out what Python prints where TensorBoard's thread fails: whoever writes the next number gets that error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
