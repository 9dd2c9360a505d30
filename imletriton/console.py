"""What the command line shows and asks: tables, progress bars, the display of a training, downloads of data sets."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.console import Console

from imletriton.commands.reporter import Reporter
from imletriton.errors import InputError

if TYPE_CHECKING:  # `imletriton --help` must not wait for these
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

    from imletriton.data.catalogue import KnownSet
    from imletriton.data.checking import Check
    from imletriton.runs.run import Run
    from imletriton.runs.schema import Evaluation, LogRecord
    from imletriton.trainer import Trainer

# Paths and messages are printed as they are, never read as markup.
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


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
        table.add_column(str(METRICS[name]), justify="right")
    values = []
    for metric in map(evaluation.metrics.get, names):
        spread = f" ± {metric.deviation:.4g}" if metric and metric.deviation is not None else ""
        values.append(f"{metric.value:.4g}{spread}" if metric else "")
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


def _first(lines: list[str], most: int = 20) -> str:
    """How many lines there are, and the first ones."""
    if not lines:
        return "none"
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([f"{len(lines)}:", *lines[:most], *more])


# -- progress ---------------------------------------------------------------------------------------------------------


def progress_bar(show: bool = True, count: "ProgressColumn | None" = None) -> "Progress":
    """A progress bar, in a terminal only.

    Args:
        show: False never shows it.
        count: How the work that is done is written; by default as "3/10".
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not (show and console.is_terminal),
    )


class FitDisplay(Reporter):
    """Shows a training: a live bar in a terminal, elsewhere a line for each record of the log."""

    def __init__(self) -> None:
        self.bar = progress_bar()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def started(self, run: "Run", trainer: "Trainer", total: int) -> None:
        step = trainer.step
        size = sum(p.numel() for p in trainer.generator.parameters()) / 1e6
        console.print(
            f"{run.path}: {f'on from step {step}' if step else 'a new run'}, {total} steps on {trainer.device}"
        )
        console.print(f"{trainer.n} data points, a pool of {trainer.pool.size}, {size:.2f} M parameters")
        self.pools = self.bar.add_task("pool", visible=False, text="")
        self.fids = self.bar.add_task("FID", visible=False, text="")
        self.steps = self.bar.add_task("training", total=total, completed=step, text="")
        self.began = (time.perf_counter(), step, total)
        self.bar.start()

    def note(self, text: str) -> None:
        self.bar.console.print(text)

    def pool(self, done: int, total: int) -> None:
        self.bar.update(self.pools, completed=done, total=total, visible=done < total)

    def fid(self, done: int, total: int) -> None:
        self.bar.update(self.fids, completed=done, total=total, visible=done < total)

    def step(self, step: int) -> None:
        self.bar.update(self.steps, completed=step)

    def log(self, record: "LogRecord") -> None:
        loss = "none" if record.loss is None else f"{record.loss:.4f}"
        text = f"loss {loss}  {record.images_per_s:.0f} images/s"
        if record.pool_per_s is not None:
            text += f"  pool {record.pool_per_s:.0f}/s"
        text += f"  {record.memory_mb} MiB"
        if record.bad_steps:
            text += f"  {record.bad_steps} bad steps"
        self.bar.update(self.steps, text=text)
        if not console.is_terminal:
            began, first, total = self.began
            left = (time.perf_counter() - began) / (record.step - first) * (total - record.step)
            console.print(f"step {record.step}/{total}  {text}  {_duration(left)} left")


def _duration(seconds: float) -> str:
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
    """Download a data set into its folder, under a progress bar. After Ctrl-C it says what is kept.

    Returns:
        Whether a download was needed.

    Raises:
        InputError: The pictures cannot be downloaded; see `imletriton.data.fetching.get`.
    """
    from rich.progress import DownloadColumn

    from imletriton.data.catalogue import DATASETS
    from imletriton.data.fetching import get
    from imletriton.data.files import holds_images, list_images

    complete = holds_images(DATASETS / known.folder)
    with progress_bar(count=DownloadColumn()) as bar:
        task = bar.add_task("fetching", visible=False, text="")

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        try:
            folder = get(known.name, progress=progress)
        except KeyboardInterrupt:
            bar.stop()
            kept = DATASETS / ".archives"
            errors.print(f"\nStopped: what has arrived is kept in {kept}, and the same command goes on from there.")
            raise
    count = len(list_images(folder))
    expected = "" if known.about or count == known.images else f" (the papers have {known.images})"
    console.print(f"{folder} holds {count} images{expected}" + (" already: nothing fetched." if complete else "."))
    return not complete
