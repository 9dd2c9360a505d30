"""What the command line shows and asks: its output, progress bars, the display of a training, downloads."""

import errno
import functools
import inspect
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, ParamSpec, Self, TypeVar, cast

import typer
from rich.console import Console

from imletriton.errors import Fault, InputError
from imletriton.system.stopping import ending
from imletriton.training.reporter import Reporter

if TYPE_CHECKING:  # `imletriton --help` must not wait for these
    from rich.console import RenderableType
    from rich.progress import Progress, ProgressColumn, TaskID

    from imletriton.data.catalogue import KnownSet
    from imletriton.runs.run import Run
    from imletriton.runs.schema import LogRecord
    from imletriton.training.trainer import Trainer

P = ParamSpec("P")
T = TypeVar("T")

LEVELS = "▁▂▃▄▅▆▇█"  # of a curve on one line
CURVES = {"samples_to_data": "samples to data", "held_out_to_samples": "held out to samples"}  # keys of the log


class Stream(io.TextIOBase):
    """Standard output or standard error, as `sys` has it at the moment. Failing to write there never ends a command.

    A stream that takes only ASCII gets ASCII. Once writing fails, as when the reader or the terminal has gone, the rest
    is dropped and `lost` is set: what a command makes must not depend on who reads along.
    """

    IN_ASCII = str.maketrans(
        {"±": "+-", "↓": "(lower is better)", "↑": "(higher is better)"} | dict(zip(LEVELS, "_.,-=+*#", strict=True))
    )

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name
        self.lost: OSError | None = None

    @property
    def _stream(self) -> IO[str] | None:
        stream: IO[str] | None = getattr(sys, self.name)  # None where it was closed before this process began
        return getattr(stream, "rich_proxied_file", stream)  # under a progress bar, rich puts itself in its place

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """ASCII under LC_ALL=C, where Python would write UTF-8."""
        if os.environ.get("LC_ALL") in ("C", "POSIX") and "PYTHONIOENCODING" not in os.environ:
            return "ascii"
        return getattr(self._stream, "encoding", None) or "utf-8"

    def shown(self, text: str) -> str:
        """The text as this stream shows it; longer where a character is not in its encoding."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.translate(self.IN_ASCII).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def write(self, text: str) -> int:
        text = self.shown(text)
        if self._stream and not self.lost:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError as error:
                self.lost = error
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # for what its buffer still holds
        return len(text)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno() if self._stream else -1

    def check(self) -> None:
        """Raise Fault where output was lost that somebody waits for, as on a full disk; not where nobody reads."""
        if self.lost and self.lost.errno not in (errno.EPIPE, errno.EIO):
            raise Fault(
                f"Not all of the output could be written ({self.lost.strerror}): make room there, and try again."
            )


# Paths and messages are printed verbatim, never read as markup.
output = Stream("stdout")
console = Console(file=cast(IO[str], output), highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = Console(file=cast(IO[str], Stream("stderr")), highlight=False, markup=False, emoji=False, soft_wrap=True)


# -- progress ---------------------------------------------------------------------------------------------------------


def shows_bars(on: Console) -> bool:
    """Whether live progress bars can be shown: in a terminal, and in a notebook that has ipywidgets."""
    return on.is_terminal or (on.is_jupyter and find_spec("ipywidgets") is not None)


def progress_bar(
    count: "ProgressColumn | None" = None, on: Console = console, below: Callable[[], str] = lambda: ""
) -> "Progress":
    """A progress bar, where it can be shown.

    Args:
        count: How the work that is done is written; by default as "3/10".
        on: Where it is shown.
        below: Gives the lines to show below the bars.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bars(Progress):
        def get_renderables(self) -> "Iterable[RenderableType]":
            yield from super().get_renderables()
            if lines := below():
                yield Text(output.shown(lines), no_wrap=True, overflow="ellipsis")

    return Bars(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=on,
        disable=not shows_bars(on),
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw a curve on one line: each character is the mean of equally many values, the lowest one the smallest mean."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    count = min(width, len(values))
    edges = [len(values) * k // count for k in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    least, span = min(means), max(means) - min(means)
    return "".join(LEVELS[min(7, int(8 * (mean - least) / span)) if span else 0] for mean in means)


class WorkDisplay:
    """Shows on standard error how far work is, and how long it will take.

    In a terminal or a notebook it shows live bars; elsewhere it prints a line once that time is known, then one every
    PAUSE seconds.
    """

    PAUSE = 10

    def __init__(self) -> None:
        self.bar = progress_bar(on=errors)
        self.began: dict[str, tuple[float, int, TaskID]] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Show how much of the work of this name is done; the first call starts its clock."""
        now = time.perf_counter()
        if name not in self.began:
            self.bar.start()  # here, so that what is printed before any work begins stands above it
            self.began[name] = now, done, self.bar.add_task(name, completed=done, total=total, text="")
        began, first, task = self.began[name]
        self.bar.update(task, completed=done)
        if not shows_bars(errors) and first < done < total and now - self.said.get(name, -self.PAUSE) >= self.PAUSE:
            self.said[name] = now
            left = (now - began) / (done - first) * (total - done)
            errors.print(f"{name}: {done}/{total}  {duration(left)} left")


class FitDisplay(Reporter):
    """Shows a training: live bars in a terminal or a notebook, elsewhere a line for each record of the log."""

    def __init__(self) -> None:
        self.text, self.curves = "", {key: list[float]() for key in CURVES}
        self.bar = progress_bar(below=self._below)
        self.log_file: Path | None = None  # named once the output is closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def pictures(self, done: int, total: int) -> None:
        if done == 0:
            self.decoding = self.bar.add_task("pictures", total=total, text="decoding")
            self.bar.start()
        self.bar.update(self.decoding, completed=done, visible=done < total)

    def started(self, run: "Run", trainer: "Trainer", total: int) -> None:
        step = trainer.step
        self.log_file = run.log_file
        newest = "its newest checkpoint, if it has one"
        ending.sentence = f"Stopped at once, without saving: {run.path} can be resumed from {newest}."
        size = sum(p.numel() for p in trainer.generator.parameters()) / 1e6
        console.print(
            f"{run.path}: {f'on from step {step}' if step else 'a new run'}, {total} steps on {trainer.device}"
        )
        console.print(f"{trainer.n} data points, a pool of {trainer.pool.size}, {size:.2f} M parameters")
        self.pools = self.bar.add_task("pool", visible=False, text="")
        self.fids = self.bar.add_task("FID", visible=False, text="")
        self.steps = self.bar.add_task("training", total=total, completed=step, text="")
        self.began, self.at = (time.perf_counter(), step, total), step
        for record in run.log() if step else ():
            if record.step <= step:
                self._note_distances(record)
        self.bar.start()

    def note(self, text: str) -> None:
        self.bar.console.print(text)

    def pool(self, done: int, total: int) -> None:
        self.bar.update(self.pools, completed=done, total=total, visible=done < total)
        _, first, steps = self.began
        if self.at == first:  # the pool before the first step says nothing about the speed of steps
            self.began = (time.perf_counter(), first, steps)

    def fid(self, done: int, total: int) -> None:
        self.bar.update(self.fids, completed=done, total=total, visible=done < total)

    def step(self, step: int) -> None:
        self.bar.update(self.steps, completed=step)
        self.at = step

    def total(self, total: int) -> None:
        self.bar.update(self.steps, total=total)
        self.began = (*self.began[:2], total)

    def distances(self, record: "LogRecord") -> None:
        self._note_distances(record)
        if not shows_bars(console):
            curves = (f"{name} {values[-1]:.4f}  {sparkline(values, 16)}" for name, values in self._known())
            console.print(f"step {record.step}/{self.began[2]}  {'  '.join(curves)}")

    def _note_distances(self, record: "LogRecord") -> None:
        for key, values in self.curves.items():
            if (value := getattr(record, key)) is not None:
                values.append(value)

    def _known(self) -> list[tuple[str, list[float]]]:
        """The distances measured so far, by their names for people."""
        return [(name, self.curves[key]) for key, name in CURVES.items() if self.curves[key]]

    def _below(self) -> str:
        """The text below the bars: the newest line of the log, and how the distances have developed."""
        lines = [f"{' ':>10} {self.text}"] if self.text else []
        for name, values in self._known():
            lines.append(f"{' ':>10} {name:19} {values[-1]:.4f}  {sparkline(values, 36)}")
        return "\n".join(lines)

    def log(self, record: "LogRecord") -> None:
        loss = "none" if record.loss is None else f"{record.loss:.4f}"
        text = f"loss {loss}  {record.images_per_s:.0f} images/s"
        if record.pool_per_s is not None:
            text += f"  pool {record.pool_per_s:.0f}/s"
        text += f"  {record.memory_mb} MiB"
        if record.bad_steps:
            text += f"  {record.bad_steps} bad steps"
        self.text = text
        if not shows_bars(console):
            began, first, total = self.began
            left = (time.perf_counter() - began) / (record.step - first) * (total - record.step)
            console.print(f"step {record.step}/{total}  {text}  {duration(left)} left")
        if output.lost and self.log_file:
            errors.print(f"The output was closed: training goes on, and {self.log_file} records it.")
            self.log_file = None


def showing_progress(function: Callable[P, T]) -> Callable[P, T]:
    """Let a command's function show its progress as the command line does, unless its caller passes another display.

    Args:
        function: One that takes a `reporter` or a `progress`; see `training.reporter`.
    """
    displays: dict[str, type[FitDisplay | WorkDisplay]] = {"reporter": FitDisplay, "progress": WorkDisplay}
    signature = inspect.signature(function)
    name = next(name for name in displays if name in signature.parameters)

    @functools.wraps(function)
    def shown(*arguments: P.args, **more: P.kwargs) -> T:
        if name in signature.bind(*arguments, **more).arguments:
            return function(*arguments, **more)
        with displays[name]() as display:
            return function(*arguments, **(more | {name: display}))  # type: ignore[arg-type]

    return shown


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, such as 0:01:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


# -- the download of a data set ---------------------------------------------------------------------------------------


def fetch_missing(source: str, yes: bool) -> None:
    """Download the pictures of a recipe where they are missing and have an address.

    Args:
        source: The recipe's data.source.
        yes: Whether to download without asking. Where nobody can answer, nobody is asked.

    Raises:
        InputError: The answer was no, or the pictures cannot be downloaded.
    """
    from imletriton.data import catalogue
    from imletriton.data.files import holds_images

    known = catalogue.at(source)
    if known is None or known.archive is None or holds_images(Path(source)):
        return
    from imletriton.data.fetching import download_size, is_downloaded

    if not is_downloaded(known):
        console.print(f"The pictures of {known.name} are not in {source} yet. They can be fetched:")
        console.print(f"  from     {known.url}")
        console.print(f"  licence  {known.licence}")
        size = download_size(known)
        console.print(f"  size     {f'{size / 1e6:,.1f} MB' if size else 'unknown: the server does not say'}")
        if yes or not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
            console.print("Fetching them now.")
        elif not typer.confirm("Fetch them now?", default=True):
            raise InputError(
                f"Without pictures nothing is trained: `imletriton data get {known.name}` fetches these later, "
                "or name a folder of your own with `data.source=FOLDER`."
            )
    fetch(known)


def fetch(known: "KnownSet") -> bool:
    """Download a data set into its folder, with a progress bar. On Ctrl-C the program says what is kept.

    Returns:
        Whether a download was needed.

    Raises:
        InputError: The pictures cannot be downloaded; see `imletriton.data.fetching.get`.
    """
    from rich.progress import DownloadColumn

    from imletriton.data.catalogue import DATASETS
    from imletriton.data.fetching import get
    from imletriton.data.files import holds_images, list_images

    kept, before = DATASETS / ".archives", ending.sentence
    ending.sentence = f"Stopped: what has arrived is kept in {kept}, and the same command goes on from there."
    complete = holds_images(DATASETS / known.folder)
    with progress_bar(count=DownloadColumn()) as bar:
        task = bar.add_task("fetching", visible=False, text="")

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        folder = get(known.name, progress=progress)
    ending.sentence = before
    count = len(list_images(folder))
    expected = "" if known.about or count == known.images else f" (the papers have {known.images})"
    console.print(f"{folder} holds {count} images{expected}" + (" already: nothing fetched." if complete else "."))
    return not complete
