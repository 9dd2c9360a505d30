"""What the command line shows and asks: tables, progress bars, the display of a training, downloads of data sets."""

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
from typing import IO, TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, cast

import typer
from rich.console import Console

from imletriton.errors import Fault, InputError, printable
from imletriton.system.stopping import ending
from imletriton.training.reporter import Reporter

if TYPE_CHECKING:  # `imletriton --help` must not wait for these
    from rich.console import RenderableType
    from rich.progress import Progress, ProgressColumn, TaskID
    from rich.table import Table

    from imletriton.commands.recipes import PackagedRecipe
    from imletriton.commands.status import Status
    from imletriton.data.catalogue import KnownSet
    from imletriton.data.checking import Check
    from imletriton.runs.run import Run
    from imletriton.runs.schema import Evaluation, LogRecord
    from imletriton.share.export.files import Exported
    from imletriton.training.trainer import Trainer

P = ParamSpec("P")
T = TypeVar("T")


LEVELS = "▁▂▃▄▅▆▇█"  # of a curve on one line
CURVES = {"samples_to_data": "samples to data", "held_out_to_samples": "held out to samples"}  # keys of the log


class Stream(io.TextIOBase):
    """Standard output or standard error, as `sys` has it at the moment: what is written there never ends a command.

    Where it takes ASCII only, it gets ASCII. Once it can be written no more, as its reader or its terminal has gone,
    the rest is dropped and `lost` is set: what a command makes must not depend on who reads along.
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
        """ASCII under LC_ALL=C, where Python by itself would write UTF-8."""
        if os.environ.get("LC_ALL") in ("C", "POSIX") and "PYTHONIOENCODING" not in os.environ:
            return "ascii"
        return getattr(self._stream, "encoding", None) or "utf-8"

    def shown(self, text: str) -> str:
        """The text as it is shown here; longer where a character is not in the encoding."""
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
        """Raise Fault where something was lost that somebody waits for, as on a full disk; not where nobody reads."""
        if self.lost and self.lost.errno not in (errno.EPIPE, errno.EIO):
            raise Fault(
                f"Not all of the output could be written ({self.lost.strerror}): make room there, and try again."
            )


# Paths and messages are printed as they are, never read as markup.
output = Stream("stdout")
console = Console(file=cast(IO[str], output), highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = Console(file=cast(IO[str], Stream("stderr")), highlight=False, markup=False, emoji=False, soft_wrap=True)


# -- tables -----------------------------------------------------------------------------------------------------------


def metrics_table(evaluation: "Evaluation") -> "Table":
    """A row for what was measured, and one for each method whose metrics are published for these pictures."""
    from rich.table import Table

    from imletriton.runs.schema import METRICS

    names = list(evaluation.metrics) or ["fid"]
    against = f"{evaluation.pictures} pictures of {evaluation.data}"
    table = Table(title=f"{evaluation.subject}: {evaluation.count} samples against {against}")
    table.add_column("")
    for name in names:
        table.add_column(output.shown(str(METRICS[name])), justify="right")
    values = []
    for metric in map(evaluation.metrics.get, names):
        spread = f" ± {metric.deviation:.4g}" if metric and metric.deviation is not None else ""
        values.append(output.shown(f"{metric.value:.4g}{spread}") if metric else "")
    table.add_row("measured here" + ("" if evaluation.weights == "pretrained" else ", random weights"), *values)
    for method, row in evaluation.published.items():
        published = (f"{row[name]:.4g}" if name in row else "" for name in names)
        table.add_row(f"{method}, published", *published, style="dim")
        table.caption = "published: as the papers report it, not measured here"
    return table


def datasets_table(sets: list[dict[str, Any]]) -> "Table":
    """A row for each of the papers' data sets, as `imletriton.data.fetching.listing` describes them."""
    from rich.table import Table

    table = Table("name", "images", "side", "source", "licence", box=None, pad_edge=False)
    for name in ("Adaptive", "RS"):
        table.add_column(name, justify="right")
    table.add_column("here")
    for known in sets:
        images = f"{'~' if known['about'] else ''}{known['images']}"
        fids = [f"{known['published'][method]['fid']:.1f}" for method in ("Adaptive IMLE", "RS-IMLE")]
        licence, here = known["licence"].partition(":")[0], "yes" if known["here"] else ""
        table.add_row(known["name"], images, str(known["resolution"]), known["source"], licence, *fids, here)
    return table


def recipes_table(recipes: "list[PackagedRecipe]") -> "Table":
    """A row for each recipe that comes with imletriton."""
    from rich.table import Table

    table = Table("name", "method", "side", "trained on", box=None, pad_edge=False)
    for recipe in recipes:
        table.add_row(recipe.name, recipe.method, str(recipe.resolution or ""), recipe.about)
    return table


def check_table(check: "Check", resolution: int) -> "Table":
    """What `imletriton data check` has found in a folder; images below the resolution, in pixels, are listed."""
    from rich.table import Table

    least, median, greatest = check.sides
    pairs = [f"{p.first} and {p.second}{' mirrored' if p.mirrored else ''}" for p in check.duplicates]
    table = Table.grid(padding=(0, 2))
    table.add_row("images", str(check.images))
    table.add_row("shorter side", f"{least} to {greatest} pixels, median {median}; distinct sizes: {check.sizes}")
    table.add_row(f"below {resolution} pixels", _first(check.small))
    table.add_row("near duplicates", _first(pairs))
    table.add_row("broken", _first([f"{name} ({reason})" for name, reason in check.broken.items()]))
    return table


def comparison(exported: "Exported") -> str:
    """A sentence on how an exported model's samples compare with those of PyTorch."""
    least = f"by at most {exported.difference} of 255 grey levels" if exported.difference else "nowhere"
    return f"Checked: {exported.samples} samples by onnxruntime and by PyTorch differ {least}."


def status_table(status: "Status") -> "Table":
    """How a run is doing, in lines of a name and a value."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    share = f" of {status.steps} ({100 * status.step / status.steps:.0f} %)" if status.steps else ""
    table.add_row("run", f"{status.run}, {status.state}")
    table.add_row("step", f"{status.step}{share}")
    if status.state == "training":
        left = "not known yet" if status.seconds_left is None else f"about {duration(status.seconds_left)}"
        table.add_row("time left", left)
    if (silent := status.seconds_silent or 0) > 60:
        table.add_row("newest line", f"of the log: {duration(silent)} ago")
    for key, value in status.figures.items():
        curve = f"  {sparkline(status.curves[key], 36)}" if key in CURVES else ""
        table.add_row(
            CURVES.get(key, key.replace("_per_s", "/s").replace("_", " ")), f"{value:.4g}{output.shown(curve)}"
        )
    for name, path in (("samples", status.sheet), ("checkpoint", status.checkpoint), ("the best", status.best)):
        if path:
            table.add_row(name, path)
    for other in status.also_training:
        table.add_row("also training", other)
    for note in status.notes:
        table.add_row("note", printable(note))
    return table


def show_until_end(tell: "Callable[[], Status]", quiet: bool = False, pause: float = 2.0) -> None:
    """Show how a run is doing until it is no longer trained: live in a terminal, elsewhere a line for each change.

    Args:
        tell: Asks how the run is doing.
        quiet: Only wait.
        pause: Seconds between two questions.
    """
    from rich.live import Live

    told = -1
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (status := tell()).state == "training" and not output.lost:
            if quiet:
                pass
            elif console.is_terminal:
                live.update(status_table(status), refresh=True)
            elif status.step != told:
                told, figures = status.step, [f"{key} {value:.4g}" for key, value in status.figures.items()]
                left = [] if status.seconds_left is None else [f"{duration(status.seconds_left)} left"]
                console.print("  ".join([f"step {status.step}/{status.steps}", *figures, *left]))
            time.sleep(pause)


def _first(lines: list[str], most: int = 20) -> str:
    """How many lines there are, and the first ones."""
    if not lines:
        return "none"
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([f"{len(lines)}:", *map(printable, lines[:most]), *more])


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
    """Draw a curve on one line: each character stands for the mean of as many values, the lowest one for the least."""
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

    In a terminal or a notebook these are live bars; elsewhere, it is a line as soon as that time is known, then one
    every PAUSE seconds.
    """

    PAUSE = 10

    def __init__(self) -> None:
        self.bar = progress_bar(on=errors)
        self.began: dict[str, tuple[float, int, TaskID]] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Show that so much of the work of this name is done; the first call tells that it begins."""
        now = time.perf_counter()
        if name not in self.began:
            self.began[name] = now, done, self.bar.add_task(name, completed=done, total=total, text="")
        began, first, task = self.began[name]
        self.bar.update(task, completed=done)
        if not shows_bars(errors) and first < done < total and now - self.said.get(name, -self.PAUSE) >= self.PAUSE:
            self.said[name] = now
            left = (now - began) / (done - first) * (total - done)
            errors.print(f"{name}: {done}/{total}  {duration(left)} left")


class FitDisplay(Reporter):
    """Shows a training: a live bar in a terminal or a notebook, elsewhere a line for each record of the log."""

    def __init__(self) -> None:
        self.text, self.curves = "", {key: list[float]() for key in CURVES}
        self.bar = progress_bar(below=self._below)
        self.log_file: Path | None = None  # to be named when nobody reads the output

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
        if self.at == first:  # a pool before the first step says nothing about the time that steps take
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
        """The distances that have been measured, by the names that people read."""
        return [(name, self.curves[key]) for key, name in CURVES.items() if self.curves[key]]

    def _below(self) -> str:
        """What stands below the bars: the newest line of the log, and how the distances have developed."""
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
            errors.print(f"Nobody reads the output any more: training goes on, and {self.log_file} records it.")
            self.log_file = None


def showing_progress(function: Callable[P, T]) -> Callable[P, T]:
    """Let a command's function, called from Python, show its progress as the command line does.

    Args:
        function: One that takes a `reporter`, or a `progress` as `training.reporter` has it, which keep their meaning;
            or neither of them, and then it is returned as it is.
    """
    displays: dict[str, type[FitDisplay | WorkDisplay]] = {"reporter": FitDisplay, "progress": WorkDisplay}
    signature = inspect.signature(function)
    name = next((name for name in displays if name in signature.parameters), None)
    if name is None:
        return function

    @functools.wraps(function)
    def shown(*arguments: P.args, **more: P.kwargs) -> T:
        if name in signature.bind(*arguments, **more).arguments:
            return function(*arguments, **more)
        with displays[name]() as display:
            return function(*arguments, **(more | {name: display}))  # type: ignore[arg-type]

    return shown


def duration(seconds: float) -> str:
    """A time as hours, minutes and seconds, such as 0:01:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


# -- the download of a data set ---------------------------------------------------------------------------------------


def fetch_missing(source: str, yes: bool) -> None:
    """Download the pictures of a recipe where they are missing and have an address.

    Args:
        source: The recipe's data.source.
        yes: Do not ask first. Where nobody can answer, it does not ask either.

    Raises:
        InputError: The answer is no, or the pictures cannot be downloaded.
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
        console.print(f"  size     {f'{size / 1e6:,.1f} MB' if size else 'unknown, as the server does not tell it'}")
        if yes or not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
            console.print("Fetching them now.")
        elif not typer.confirm("Fetch them now?", default=True):
            raise InputError(
                f"Without pictures nothing is trained: `imletriton data get {known.name}` fetches these later, "
                "or name a folder of your own with `data.source=FOLDER`."
            )
    fetch(known)


def fetch(known: "KnownSet") -> bool:
    """Download a data set into its folder, under a progress bar. On Ctrl-C the program says what is kept.

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
