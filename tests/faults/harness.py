"""Runs commands in forked processes of their own, with limits, and judges how they end.

A fork of a process that has loaded everything starts in a few milliseconds, which a new Python takes seconds for.
"""

import contextlib
import importlib
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

import torch
from conftest import TINY
from small_networks import SmallInception, SmallVGG

from imletriton.__main__ import main
from imletriton.metrics import networks
from imletriton.recipe import Recipe
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
    """How a process ended.

    Attributes:
        code: The exit code; negative for the signal that ended the process.
        output: What it printed, to standard output and standard error.
        seconds: How long it took.
    """

    code: int
    output: str
    seconds: float

    def problems(self, *allowed: int) -> list[str]:
        """What is wrong with it. Allowed are the given exit codes, by default 0, 1 and 2."""
        found = []
        if self.code not in (allowed or (0, 1, 2)):
            found.append(f"ended with {self.code} after {self.seconds:.1f} s")
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


def forked(
    work: Callable[[], int], folder: Path, watch: Callable[[int], None] = lambda pid: None, seconds: float = SECONDS
) -> Outcome:
    """Do some work in a process of its own.

    Args:
        work: What to do; returns the exit code.
        folder: The working directory.
        watch: Is called with the process's number once it has begun, and may kill it.
        seconds: After this time it is killed, which counts as a failure.
    """
    output = os.memfd_create("output")
    began = time.monotonic()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        _child(work, folder, output)
    watch(pid)
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > seconds:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome(124, f"{_take(output)}\n(took more than {seconds} s, and was killed)", seconds)
        time.sleep(0.002)
    return Outcome(os.waitstatus_to_exitcode(ended[1]), _take(output), time.monotonic() - began)


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


def run(folder: Path, *words: str, watch: Callable[[int], None] = lambda pid: None) -> Outcome:
    """Run a command in a process of its own, in a folder."""
    return forked(lambda: command(*words), folder, watch)


def fit(*more: str) -> list[str]:
    """The words of the command that trains the run that all cases are about, or goes on with it."""
    return ["fit", "tiny.toml", "--run-dir", "run", "--device", "cpu", *more]


# The other commands, and what each of them leaves behind.
WORK = {
    "gen": ["gen", "run", "--n", "4", "--device", "cpu"],
    "eval": ["eval", "run", "--n", "20", "--metrics", "fid", "--device", "cpu", "--json"],
    "show": ["show", "run"],
    "report": ["report", "run"],
}


def make_runs(folder: Path) -> None:
    """Train the run that all cases are about, and another one from another seed, and use them.

    Raises:
        RuntimeError: A command has failed.
    """
    (folder / "other").mkdir(parents=True)
    changes = {"selection.strategy": "adaptive", "train.iterations": 30, "log.every": 5, "log.samples_every": 15}
    for place, seed in ((folder, 0), (folder / "other", 1)):
        (place / "tiny.toml").write_text(TINY)
        (place / "tiny.toml").write_text(Recipe.load(place / "tiny.toml", changes | {"train.seed": seed}).to_toml())
        for words in (fit(), *WORK.values()):
            ended = run(place, *words)
            if ended.code or ended.problems():
                raise RuntimeError(f"{' '.join(words)}: {ended}")


@contextlib.contextmanager
def copied(base: Path, *names: str) -> Iterator[Path]:
    """A context with a new folder that holds copies of some of the files and folders in `base`."""
    place = base / f".case-{os.getpid()}-{time.monotonic_ns()}"  # beside them, on the same disk
    place.mkdir()
    try:
        for name in names:
            source, target = base / name, place / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        yield place
    finally:
        shutil.rmtree(place)
