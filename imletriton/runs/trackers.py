"""Experiment trackers: TensorBoard, Weights & Biases (wandb) and Trackio, all with the keys of log.jsonl.

A resumed run continues its entry in each tracker. TensorBoard's files are in the run's folder; the others know the run
by its `tracker_id`.
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

PROJECT = "imletriton"  # the project that wandb and Trackio file runs under


class Tracker(Protocol):
    """Receives the log of a run. Any exception that a method raises counts as a failure of the tracker.

    Args:
        run: The run.
        step: The step that training starts from; 0 for a new run.
        config: The recipe, as plain values.
    """

    def __init__(self, run: Run, step: int, config: Mapping[str, Any]) -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step, by the keys of `LogRecord`."""

    def picture(self, step: int, name: str, file: Path) -> None:
        """Log a PNG file of a step."""

    def close(self, failed: bool) -> None:
        """Write what is left; `failed` says that an exception ended training."""


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
    """A run of wandb, with files in the run's folder; WANDB_PROJECT, WANDB_MODE and so on say where it is sent."""

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
            settings=wandb.Settings(console="off", quiet=True),  # wandb prints the run's address only
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=max(step, self.run.step))  # wandb drops steps before its own

    def picture(self, step: int, name: str, file: Path) -> None:
        self.run.log({name: self.image(str(file))}, step=max(step, self.run.step))

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, which stores it below TRACKIO_DIR, or in the Space that TRACKIO_SPACE_ID names."""

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
    """Check, without importing them, that the packages of trackers are installed; raises InputError if one is not."""
    for name in names:
        try:
            version(name)  # a folder wandb/, as a run has it, could be imported by this name too
        except PackageNotFoundError:
            raise InputError(
                f"log.trackers names {name}, which is not installed: "
                f'run `pip install "imletriton[{name}]"`, or leave it out of log.trackers.'
            ) from None


def tracker_id(run: Run) -> str:
    """The name under which trackers know a run, even after it was moved; the first call makes it and stores it."""
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
    """Suppress the traceback of TensorBoard's thread where it fails: the next write to it raises the same error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
