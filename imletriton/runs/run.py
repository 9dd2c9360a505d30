"""The run directory: where everything lies."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imletriton.errors import InputError
from imletriton.runs.schema import Evaluation, LogRecord

RUNS = Path("runs")


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, then move it there: it appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    try:
        write(unfinished)
        to_disk(unfinished)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Run:
    """A run's folder and the places in it. Nothing is made by looking."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def log(self) -> list[LogRecord]:
        """The log line by line, without damaged lines, which a killed process may leave; [] where there is none."""
        records = []
        for line in self.log_file.read_text().splitlines() if self.log_file.exists() else ():
            with contextlib.suppress(ValueError):
                records.append(LogRecord.model_validate(json.loads(line)))
        return records

    def figure(self, name: str) -> Path:
        """The PNG file of a picture or chart that a command draws."""
        return self.path / "figures" / f"{name}.png"

    def generated(self, version: str, seed: int) -> Path:
        """The folder of the samples that a version of the weights, such as 000500, makes from a random seed."""
        return self.path / "gen" / f"{version}-seed-{seed}"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "eval.json"

    def evaluation(self) -> Evaluation | None:
        """What the newest evaluation found, None where there is none.

        Raises:
            InputError: The file is damaged.
        """
        if not self.evaluation_file.is_file():
            return None
        try:
            return Evaluation.model_validate(json.loads(self.evaluation_file.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.evaluation_file} is damaged: remove it, then evaluate again.") from error

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints' folders, oldest first."""
        return checkpoints_of(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock goes with the process, however it ends.

        Raises InputError while another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}): choose another `run_dir`.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path} is being trained by another process: wait for it, or stop it.") from None
            yield


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, by its path alone: RUN/checkpoints/STEP."""
    return folder.parent.name == "checkpoints" and re.fullmatch(r"\d{6,}", folder.name) is not None


def checkpoints_of(run: Path) -> list[Path]:
    """The whole checkpoints in a run's folder, oldest first; none where it is no run."""
    folder = run / "checkpoints"
    folders = folder.iterdir() if folder.is_dir() else ()
    return sorted(filter(is_checkpoint, folders), key=lambda p: int(p.name))


def newest_checkpoint(run: Path) -> Path | None:
    """A run's newest checkpoint, None where there is none."""
    return next(reversed(checkpoints_of(run)), None)


def new_run(name: str, root: Path = RUNS) -> Run:
    """Make the folder of the next free run of a name: NAME-001, NAME-002, ..."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            numbers = [int(p.name[len(name) + 1 :]) for p in runs_of(name, root)]
            path = root / f"{name}-{max(numbers, default=0) + 1:03d}"
            with contextlib.suppress(FileExistsError):  # another process was faster
                path.mkdir()
                return Run(path)
    except OSError as error:
        raise InputError(f"{root}/ cannot be written ({error.strerror}): choose a folder with `run_dir`.") from error


def runs_of(name: str, root: Path = RUNS) -> list[Path]:
    """The runs of a name, oldest first."""
    found = root.iterdir() if root.is_dir() else ()
    matching = (p for p in found if re.fullmatch(re.escape(name) + r"-\d{3,}", p.name))
    return sorted(matching, key=lambda p: int(p.name[len(name) + 1 :]))


def newest_run(root: Path = RUNS) -> Run:
    """The run whose newest checkpoint is the youngest. Raises InputError where no run has one."""
    found = root.iterdir() if root.is_dir() else ()
    newest = [checkpoint for run in found if (checkpoint := newest_checkpoint(run))]
    if not newest:
        raise InputError(
            f"No run with a checkpoint lies in {root}/: train one with `imletriton fit`, or name its folder."
        )
    return Run(max(newest, key=lambda p: p.stat().st_mtime).parent.parent)
