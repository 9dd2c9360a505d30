"""What the command line shows: bars, tables, lines."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

    from imletriton.runs.run import Run
    from imletriton.runs.schema import Evaluation, LogRecord
    from imletriton.trainer import Trainer

# Paths and messages are printed as they are, never read as markup.
console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def metrics_table(result: "Evaluation") -> "Table":
    """A row for what was measured, and one for each method whose metrics are published for these pictures."""
    from rich.table import Table

    from imletriton.runs.schema import METRICS

    names = list(result.metrics) or ["fid"]
    against = f"{result.pictures} pictures of {result.data}"
    table = Table(title=f"{result.subject}: {result.count} samples against {against}")
    table.add_column("")
    for name in names:
        table.add_column(str(METRICS[name]), justify="right")
    values = []
    for metric in map(result.metrics.get, names):
        spread = f" ± {metric.deviation:.4g}" if metric and metric.deviation is not None else ""
        values.append(f"{metric.value:.4g}{spread}" if metric else "")
    table.add_row("measured here" + ("" if result.weights == "pretrained" else ", random weights"), *values)
    for method, row in result.published.items():
        published = (f"{row[name]:.4g}" if name in row else "" for name in names)
        table.add_row(f"{method}, published", *published, style="dim")
        table.caption = "published: as the papers report it, not measured here"
    return table


def some(what: list[str], most: int = 20) -> str:
    """A line each of some, and how many there are."""
    if not what:
        return "none"
    more = [f"and {len(what) - most} more"] if len(what) > most else []
    return "\n".join([f"{len(what)}:", *what[:most], *more])


def progress_bar(show: bool = True, count: "ProgressColumn | None" = None) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not (show and console.is_terminal),  # plain lines there instead
    )


def reporter() -> Any:
    """A context that shows a fit: a live bar in a terminal, a line per log record elsewhere."""
    from imletriton.commands.fit import Reporter

    class Shown(Reporter):
        def __init__(self) -> None:
            self.bar = progress_bar()

        def __enter__(self) -> "Shown":
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
            self.pools = self.bar.add_task("pool", visible=False, figures="")
            self.fids = self.bar.add_task("FID", visible=False, figures="")
            self.steps = self.bar.add_task("training", total=total, completed=step, figures="")
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
            figures = f"loss {loss}  {record.images_per_s:.0f} images/s"
            if record.pool_per_s is not None:
                figures += f"  pool {record.pool_per_s:.0f}/s"
            figures += f"  {record.memory_mb} MiB"
            if record.bad_steps:
                figures += f"  {record.bad_steps} bad steps"
            self.bar.update(self.steps, figures=figures)
            if not console.is_terminal:
                began, first, total = self.began
                left = (time.perf_counter() - began) / (record.step - first) * (total - record.step)
                console.print(f"step {record.step}/{total}  {figures}  {_duration(left)} left")

    return Shown()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
