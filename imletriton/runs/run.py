"""The folder of a run: the path of everything in it, and its lock."""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imletriton.errors import InputError, notice
from imletriton.runs.reading import Damaged, read_json, read_lines
from imletriton.runs.schema import Evaluation, LogRecord
from imletriton.system.checks import writing

RUNS = Path("runs")  # the folder that runs are created in


def to_disk(path: Path) -> None:
    """Wait until a file or folder has been written to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it appears whole or not at all, even if the process is killed or two write it at once.

    Args:
        path: The file.
        write: Writes the file to the temporary path, in the same folder, that it is called with.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        to_disk(unfinished)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Run:
    """A run's folder, and the path of everything in it; usable wherever a path is. No property creates anything."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def log(self) -> list[LogRecord]:
        """Read the log, without damaged lines, which a killed process may leave; empty if there is none."""
        return read_lines(self.log_file, LogRecord)

    @property
    def tracker_id_file(self) -> Path:
        """The name under which trackers know the run; see `runs.trackers`."""
        return self.path / "tracker-id"

    def figure(self, name: str) -> Path:
        """The PNG file of a picture or chart that a command draws."""
        return self.path / "figures" / f"{name}.png"

    def generated(self, version: str, origin: str) -> Path:
        """The folder of samples from `origin` (seed-0, from-photo) by a version of the weights, such as 000500."""
        return self.path / "gen" / f"{version}-{origin}"

    @property
    def projected(self) -> Path:
        """The folder of the latent codes that photos were projected to."""
        return self.path / "projected"

    @property
    def favourites(self) -> Path:
        """The folder of the pictures that were saved on the page of `explore`."""
        return self.path / "favourites"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "eval.json"

    def evaluation(self) -> Evaluation | None:
        """Read the newest evaluation; None if there is none, or if it is damaged, with a notice."""
        if not self.evaluation_file.exists():
            return None
        try:
            return read_json(self.evaluation_file, Evaluation, "evaluate again")
        except Damaged as error:
            notice(f"{error.what} and is left out: evaluate again.")
            return None

    @property
    def samples(self) -> Path:
        """The folder of the sheets of samples that training writes, samples/STEP.png."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints' folders, oldest first."""
        return checkpoints_of(self.path)

    @property
    def job(self) -> str:
        """The torchrun job that trains the run or trained it last; empty if it was started without torchrun."""
        file = self.path / ".lock"
        return file.read_text("utf-8", "replace") if file.is_file() else ""

    @property
    def is_locked(self) -> bool:
        """Whether a process is training the run."""
        with contextlib.suppress(OSError), (self.path / ".lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released at once, when the file is closed
            except BlockingIOError:
                return True
        return False

    @contextlib.contextmanager
    def lock(self, job: str = "") -> Iterator[None]:
        """Lock the run for this process, and create its folder. The lock ends with the process, however that ends.

        Args:
            job: The torchrun job, which becomes the run's `job`.

        Raises:
            InputError: Another process holds the lock, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a", encoding="utf-8")
        except OSError as error:
            path = error.filename or self.path
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another `run_dir`.") from error
        with file:
            if not _locks(file):
                raise InputError(f"{self.path} is being trained by another process: wait for it, or stop it.")
            if self.job != job:
                file.truncate(0)
                file.write(job)
                file.flush()
            yield


def _locks(file: IO[str], tries: int = 5) -> bool:
    """Lock a file for this process alone; several tries, as `is_locked` of another process holds it for a moment."""
    for again in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05 if again else 0)
        else:
            return True
    return False


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder's path is that of a checkpoint, RUN/checkpoints/STEP."""
    return folder.parent.name == "checkpoints" and re.fullmatch(r"\d{6,}", folder.name) is not None


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first; empty if it is not a run."""
    folder = run / "checkpoints"
    folders = folder.iterdir() if folder.is_dir() else ()
    return sorted(filter(is_checkpoint, folders), key=lambda p: int(p.name))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint in a run's folder, or None."""
    return next(reversed(checkpoints_of(run)), None)


def new_run(name: str, root: Path = RUNS) -> Run:
    """Create the folder of a new run, with the next free number: NAME-001, NAME-002, ...

    Raises:
        InputError: It cannot be created.
    """
    with writing(f"{root}/", "choose a folder with `run_dir`"):
        root.mkdir(parents=True, exist_ok=True)
        while True:
            numbers = [int(p.name[len(name) + 1 :]) for p in runs_of(name, root)]
            path = root / f"{name}-{max(numbers, default=0) + 1:03d}"
            with contextlib.suppress(FileExistsError):  # another process took the number
                path.mkdir()
                return Run(path)


def runs_of(name: str, root: Path = RUNS) -> list[Path]:
    """The runs of a recipe's name, oldest first."""
    folders = root.iterdir() if root.is_dir() else ()
    matching = (p for p in folders if re.fullmatch(re.escape(name) + r"-\d{3,}", p.name))
    return sorted(matching, key=lambda p: int(p.name[len(name) + 1 :]))


def newest_run(root: Path = RUNS) -> Run:
    """Find the run that saved a checkpoint last; raises InputError if none has one."""
    folders = root.iterdir() if root.is_dir() else ()
    newest = [checkpoint for folder in folders if (checkpoint := newest_checkpoint(folder))]
    if not newest:
        raise InputError(
            f"There is no run with a checkpoint in {root}/: train one with `imletriton fit`, or name its folder."
        )
    return Run(max(newest, key=lambda p: p.lstat().st_mtime).parent.parent)
