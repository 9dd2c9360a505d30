"""What commands have found out, as tables."""

import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from imletriton.console import CURVES, console, duration, output, sparkline
from imletriton.errors import printable
from imletriton.runs.schema import METRICS, Evaluation

if TYPE_CHECKING:  # a table needs only what it shows
    from imletriton.commands.recipes import PackagedRecipe, RecipeKey
    from imletriton.commands.status import Status
    from imletriton.data.checking import Check
    from imletriton.share.export.files import Exported

LISTED = 20  # files that a table names


def metrics_table(evaluation: Evaluation) -> Table:
    """A row for what was measured, and one for each method whose metrics are published for these pictures."""
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


def datasets_table(sets: list[dict[str, Any]]) -> Table:
    """A row for each of the papers' data sets, as `imletriton.data.fetching.listing` describes them."""
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


def recipes_table(recipes: "list[PackagedRecipe]") -> Table:
    """A row for each recipe that comes with imletriton."""
    table = Table("name", "method", "side", "trained on", box=None, pad_edge=False)
    for recipe in recipes:
        table.add_row(recipe.name, recipe.method, str(recipe.resolution or ""), recipe.about)
    return table


def keys_text(keys: "list[RecipeKey]") -> str:
    """For each key of a recipe a line with its default and type, and its meaning below."""
    lines = []
    for key in keys:
        lines.append(f"{key.name} = {key.default or '...'}  ({key.kind}{'' if key.default else ', required'})")
        lines += textwrap.wrap(key.meaning, console.width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def check_table(check: "Check", resolution: int) -> Table:
    """What `imletriton data check` has found in a folder; images below the resolution, in pixels, are listed."""
    least, median, greatest = check.sides
    pairs = [f"{p.first} and {p.second}{' mirrored' if p.mirrored else ''}" for p in check.duplicates]
    table = Table.grid(padding=(0, 2))
    table.add_row("images", str(check.images))
    table.add_row("shorter side", f"{least} to {greatest} pixels, median {median}; distinct sizes: {check.sizes}")
    table.add_row(f"below {resolution} pixels", _first(check.small))
    table.add_row("near duplicates", _first(pairs))
    table.add_row("broken", _first([f"{name} ({reason})" for name, reason in check.broken.items()]))
    return table


def _first(lines: list[str]) -> str:
    """How many lines there are, and the first LISTED of them."""
    if not lines:
        return "none"
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join([f"{len(lines)}:", *map(printable, lines[:LISTED]), *more])


def comparison(exported: "Exported") -> str:
    """A sentence on how an exported model's samples compare with those of PyTorch."""
    least = f"by at most {exported.difference} of 255 grey levels" if exported.difference else "nowhere"
    return f"Checked: {exported.samples} samples by onnxruntime and by PyTorch differ {least}."


def status_table(status: "Status") -> Table:
    """How a run is doing, in lines of a name and a value."""
    table = Table.grid(padding=(0, 2))
    share = f" of {status.steps} ({100 * status.step / status.steps:.0f} %)" if status.steps else ""
    table.add_row("run", f"{status.run}, {status.state}")
    table.add_row("step", f"{status.step}{share}")
    if status.state == "training":
        left = "not known yet" if status.seconds_left is None else f"about {duration(status.seconds_left)}"
        table.add_row("time left", left)
    if (silent := status.seconds_silent or 0) > 60:
        table.add_row("last logged", f"{duration(silent)} ago")
    for key, value in status.figures.items():
        curve = f"  {sparkline(status.curves[key], 36)}" if key in CURVES else ""
        name = CURVES.get(key, key.replace("_per_s", "/s").replace("_", " "))
        table.add_row(name, f"{value:.4g}{output.shown(curve)}")
    for name, path in (("samples", status.sheet), ("checkpoint", status.checkpoint), ("the best", status.best)):
        if path:
            table.add_row(name, path)
    for other in status.also_training:
        table.add_row("also training", other)
    for note in status.notes:
        table.add_row("note", printable(note))
    return table


def follow(ask: "Callable[[], Status]", quiet: bool = False, pause: float = 2.0) -> None:
    """Show how a run is doing until it no longer trains: live in a terminal, elsewhere a line for each change.

    Args:
        ask: Returns how the run is doing.
        quiet: Only wait.
        pause: Seconds between two calls of `ask`.
    """
    told = -1
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (status := ask()).state == "training" and not output.lost:
            if quiet:
                pass
            elif console.is_terminal:
                live.update(status_table(status), refresh=True)
            elif status.step != told:
                told, figures = status.step, [f"{key} {value:.4g}" for key, value in status.figures.items()]
                left = [] if status.seconds_left is None else [f"{duration(status.seconds_left)} left"]
                console.print("  ".join([f"step {status.step}/{status.steps}", *figures, *left]))
            time.sleep(pause)
