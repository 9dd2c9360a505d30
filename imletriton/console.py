"""What the command line shows: bars, tables, lines."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

    from imletriton.runs.run import Run
    from imletriton.trainer import Trainer

# Paths and messages are printed as they are, never read as markup.
console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def figures_table(result: dict[str, Any]) -> "Table":
    """A row for what was measured, and one for each method whose figures are published for these pictures."""
    from rich.table import Table

    names = list(result["metrics"]) or ["fid"]
    what = f"{result['run']}, step {result['step']}" if result["step"] else result["samples"]
    against = f"{result['pictures']} pictures of {result['data']}"
    table = Table(title=f"{what}: {result['count']} samples against {against}")
    table.add_column("")
    for name in names:
        table.add_column(
            {"fid": "FID ↓", "kid": "KID ↓", "backtracking": "LPIPS ↓"}.get(name, f"{name} ↑"), justify="right"
        )
    measured = [_figure(result["metrics"].get(name)) for name in names]
    table.add_row("measured here" + ("" if result["weights"] == "pretrained" else ", random weights"), *measured)
    for method, row in result["published"].items():
        table.add_row(
            f"{method}, published",
            *(_figure({"value": row[k]} if k in row else None) for k in names),
            style="dim",
        )
        table.caption = "published: as the papers report it, not measured here"
    return table


def some(what: list[str], most: int = 20) -> str:
    """A line each of some, and how many there are."""
    if not what:
        return "none"
    more = [f"and {len(what) - most} more"] if len(what) > most else []
    return "\n".join([f"{len(what)}:", *what[:most], *more])


def _figure(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    spread = f" ± {found['deviation']:.4g}" if "deviation" in found else ""
    return f"{found['value']:.4g}{spread}"


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

        def log(self, record: dict[str, Any]) -> None:
            loss = "none" if record["loss"] is None else f"{record['loss']:.4f}"
            figures = f"loss {loss}  {record['images_per_s']:.0f} images/s"
            if record["pool_per_s"] is not None:
                figures += f"  pool {record['pool_per_s']:.0f}/s"
            figures += f"  {record['memory_mb']} MiB"
            if record["bad_steps"]:
                figures += f"  {record['bad_steps']} bad steps"
            self.bar.update(self.steps, figures=figures)
            if not console.is_terminal:
                began, first, total = self.began
                left = (time.perf_counter() - began) / (record["step"] - first) * (total - record["step"])
                console.print(f"step {record['step']}/{total}  {figures}  {_duration(left)} left")

    return Shown()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
