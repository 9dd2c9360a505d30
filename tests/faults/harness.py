"""Runs commands in forked processes of their own, with limits, and judges how they end.

A fork of a process that has loaded everything starts in a few milliseconds, which a new Python takes seconds for.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import TINY, picture, zipped
from small_networks import SmallInception, SmallVGG

from imletriton.__main__ import main
from imletriton.data.catalogue import DATASETS
from imletriton.metrics import networks
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import check_checkpoint
from imletriton.runs.reading import Damaged
from imletriton.runs.run import Run
from imletriton.share import views

SECONDS = 120  # of a case, at most; on an idle core hardly any takes one
MEMORY = 4 << 30  # bytes of addresses that a case may have besides those that it begins with
TAIL = 12  # lines of output that are shown of a failure
LOADED = (
    "commands.fit",
    "commands.gen",
    "commands.report",
    "metrics.comparison",
    "data.checking",
    "data.fetching",
    "plotting.charts",
)
for module in (*(f"imletriton.{name}" for name in LOADED), "jinja2", "torch.utils.tensorboard", "torch._dynamo"):
    importlib.import_module(module)


@dataclass(frozen=True)
class Outcome:
    """How a process ended: the exit code, negative for a signal, and what it printed."""

    code: int
    output: str

    def problems(self, *allowed: int) -> list[str]:
        """What is wrong with it. Allowed are the given exit codes, by default 0, 1 and 2."""
        found = []
        if self.code not in (allowed or (0, 1, 2)):
            found.append(f"ended with {self.code}")
        if "Traceback (most recent call last)" in self.output:
            found.append("printed a traceback")
        told = [line for line in self.output.splitlines() if line.startswith(("error: ", "fault: "))]
        if self.code in (1, 2) and len(told) != 1:
            found.append(f"told {len(told)} errors instead of one")
        elif self.code in (1, 2) and self.output.rstrip().splitlines()[-1] != told[0]:
            found.append("told an error of several lines")
        return [f"{problem}:\n{self._tail()}" for problem in found]

    def _tail(self) -> str:
        return "\n".join(f"    {line[:300]}" for line in self.output.splitlines()[-TAIL:])


def forked(work: Callable[[], int], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Do some work, which returns an exit code, in a process of its own in a folder. Too long counts as a failure."""
    output = os.memfd_create("output")
    began = time.monotonic()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        _child(work, folder, output)
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > seconds:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome(124, f"{_take(output)}\n(took more than {seconds} s, and was killed)")
        time.sleep(0.002)
    return Outcome(os.waitstatus_to_exitcode(ended[1]), _take(output))


def _child(work: Callable[[], int], folder: Path, output: int) -> None:
    """What a forked process does; never returns."""
    code = 99
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115
        sys.stdout, sys.stderr = (os.fdopen(k, "w", closefd=False) for k in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.set_num_threads(1)
        networks.Inception, networks.VGG16 = SmallInception, SmallVGG  # type: ignore[misc]
        views.RECALLED = 20
        os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
        os.chdir(folder)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _take(output: int) -> str:
    with os.fdopen(output, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")


def command(*words: str) -> int:
    """Run the command line in this process; its exit code."""
    sys.argv = ["imletriton", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run(folder: Path, words: list[str]) -> Outcome:
    """Run a command in a process of its own, in a folder."""
    return forked(lambda: command(*words), folder)


# -- the runs that all cases are about --------------------------------------------------------------------------------


def fit(*more: str) -> list[str]:
    """The words of the command that trains a run, or goes on with it."""
    return ["fit", "tiny.toml", "--run-dir", "run", "--device", "cpu", *more]


WORK = {  # the commands that use it
    "gen": ["gen", "run", "--n", "4", "--device", "cpu"],
    "eval": ["eval", "run", "--n", "20", "--metrics", "fid", "--device", "cpu", "--json"],
    "show": ["show", "run"],
    "report": ["report", "run"],
}
MADE = {"gen": "gen", "eval": "eval.json", "show": "figures", "report": "report.html"}  # by each of them, in the run
COMMANDS = ("fit", *WORK, "data get")
MEASURED = ("images_per_s", "pool_per_s", "memory_mb", "seconds")  # differs from run to run


def words_of(name: str, here: Path) -> list[str]:
    """The words of a command, which goes on with what it has begun."""
    if name == "data get":
        return ["data", "get", "dog"]
    return WORK.get(name) or fit(*["--resume"] * (here / "run/recipe.toml").exists())


def make_runs(folder: Path) -> None:
    """Train a run and another one from another seed, and use them.

    Raises:
        RuntimeError: A command has failed.
    """
    (folder / "other").mkdir(parents=True)
    changes = {"selection.strategy": "adaptive", "train.iterations": 30, "log.every": 5, "log.samples_every": 15}
    for place, seed in ((folder, 0), (folder / "other", 1)):
        (place / "tiny.toml").write_text(TINY)
        (place / "tiny.toml").write_text(Recipe.load(place / "tiny.toml", changes | {"train.seed": seed}).to_toml())
        for words in (fit(), *WORK.values()):
            ended = run(place, words)
            if ended.code or ended.problems():
                raise RuntimeError(f"{' '.join(words)}: {ended}")


@contextlib.contextmanager
def new_folder(base: Path) -> Iterator[Path]:
    """A context with a new folder in `base`, on the same disk."""
    place = base / f".case-{os.getpid()}-{time.monotonic_ns()}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def prepare(name: str, base: Path, here: Path) -> None:
    """Put what a command needs into a folder: the recipe, the run without what the command makes, or an archive."""
    shutil.copy(base / "tiny.toml", here)
    if name in MADE:
        shutil.copytree(base / "run", here / "run")
        made = here / "run" / MADE[name]
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    if name == "data get":
        archive = here / DATASETS / ".archives" / "AnimalFace-dog.zip"
        archive.parent.mkdir(parents=True)
        archive.write_bytes(zipped({f"AnimalFace-dog/{k}.png": picture(k, side=64) for k in range(8)}))


def sizes(folder: Path) -> dict[Path, int]:
    """The sizes of all files below a folder, in which other threads may be renaming some."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                found[path] = path.stat().st_size
    return found


def damaged(folder: Path) -> list[str]:
    """Which checkpoints of a run are not whole."""
    problems = []
    for checkpoint in Run(folder).checkpoints:
        try:
            check_checkpoint(checkpoint)
        except Damaged as error:
            problems.append(f"{error}")
    return problems


def differs(name: str, base: Path, here: Path) -> list[str]:
    """What a command has made, where it is not what it makes undisturbed."""
    if name == "data get":
        pictures = [path for path in sizes(here / DATASETS) if path.suffix == ".png"]
        whole = {path.parent.name for path in pictures} == {"AnimalFace-dog"} and len(pictures) == 8
        return [] if whole else [f"did not fetch all pictures, or left some elsewhere: {pictures}"]
    if name == "fit":
        end, expected = everything(here / "run"), everything(base / "run")
        return [f"{key} is not as undisturbed" for key in expected if end.get(key) != expected[key]]
    made, expected = ({p.relative_to(at): p for p in sizes(at)} for at in (here / "run", base / "run"))
    problems = [f"{path} is missing" for path in expected.keys() - made.keys()]
    for path, file in expected.items():
        if path in made and path.suffix != ".html" and made[path].read_bytes() != file.read_bytes():
            problems.append(f"{path} is not as undisturbed")
    return problems


def everything(folder: Path) -> dict[str, Any]:
    """What a run's end consists of: its last checkpoint's files, its sheets, and the log without speeds."""
    if not (checkpoints := Run(folder).checkpoints):
        return {}
    files: dict[str, Any] = {path.name: path.read_bytes() for path in checkpoints[-1].iterdir()}
    files["checkpoints"] = [checkpoint.name for checkpoint in checkpoints]
    files["sheets"] = [path.read_bytes() for path in sorted((folder / "samples").glob("0*.png"))]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    files["log"] = [{key: value for key, value in record.items() if key not in MEASURED} for record in log]
    return files
