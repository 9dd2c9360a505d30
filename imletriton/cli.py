"""The command line: parse, call, print. Heavy imports wait until a command runs."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from imletriton.errors import Fault, InputError, Interrupted

if TYPE_CHECKING:
    from rich.progress import Progress

    from imletriton.run import Run
    from imletriton.trainer import Trainer

app = typer.Typer(
    help="Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Paths and messages are printed as they are, never read as markup.
console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Device = Annotated[str | None, typer.Option(help="cuda or cpu; by default cuda where there is one.")]


@app.command()
def fit(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/faces.toml.", show_default=False)],
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME-001 and so on.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    device: Device = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
) -> None:
    """Train a generator as a recipe says."""
    from imletriton.fitting import fit as run_fit
    from imletriton.recipe import Recipe, parse_override

    loaded = Recipe.load(recipe, dict(parse_override(text) for text in set_ or []))
    with _reporter() as reporter:
        run = run_fit(loaded, run_dir, device, resume, reporter)
    console.print(f"\nDone. {run.path} holds the trained generator.")
    console.print(f"  samples      {run.samples / f'{loaded.train.iterations:06d}.png'}")
    console.print(f"  checkpoint   {run.checkpoints[-1]}")
    console.print(f"  curves       tensorboard --logdir {shlex.quote(str(run.path))}")
    if loaded.generator.decoder == "vdvae":
        console.print(f"Next: imletriton gen {shlex.quote(str(run.path))} --n 100", style="bold")


@app.command()
def gen(
    run: Annotated[Path | None, typer.Argument(help="A run or checkpoint; the newest run when left out.")] = None,
    n: Annotated[int, typer.Option("--n", help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Sample k depends on the seed and k alone.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The folder; by default RUN/gen/STEP-seed-SEED.")] = None,
    device: Device = None,
) -> None:
    """Write samples as PNG files; called again, it writes those that are missing."""
    if n < 1:
        raise InputError(f"--n must be at least 1, not {n}.")
    if run is None:
        from imletriton.run import newest_run

        run = newest_run().path
        console.print(f"The newest run is {run}.")
    from imletriton.fitting import choose_device
    from imletriton.generating import generate

    began = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task("generating", total=n, figures="")
        folder, new = generate(run, n, seed, out, choose_device(device), lambda done: bar.update(task, completed=done))
    kept = f", {n - new} were there already" if new < n else ""
    console.print(f"{folder} holds {n} samples: {new} made in {time.perf_counter() - began:.1f} s{kept}.")


@app.command()
def show(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [WHAT]",
            help="A run, the newest when left out; samples, latents, thresholds or distances, all when left out.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG file of one picture; by default in RUN/figures/.")] = None,
) -> None:
    """Draw a run: its samples, and how its selection went."""
    from imletriton import showing
    from imletriton.run import newest_run

    words = what or []
    names = [w for w in words[-1:] if len(words) == 2 or not ("/" in w or Path(w).is_dir()) or w in showing.FIGURES]
    folders = words[: len(words) - len(names)]
    if len(folders) > 1:
        raise InputError(f"show takes a run and what to show, not {shlex.join(words)}.")
    run = Path(folders[0]) if folders else newest_run().path
    for name, path in showing.show(run, names[0] if names else None, out).items():
        console.print(f"  {name:12} {path}")


def main() -> None:
    """Run the command line; the exit codes are 0 done, 1 a fault, 2 bad input, 130 interrupted."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except Interrupted as stopped:
        run = shlex.quote(str(stopped.run))
        go_on = f"imletriton fit {run}/recipe.toml --run-dir {run} --resume --device {stopped.device}"
        errors.print(f"\n{stopped} Go on with:\n  {go_on}")
        sys.exit(130)
    except typer.Abort:  # Ctrl-C where nothing needs saving
        sys.exit(130)
    except InputError as error:
        errors.print(f"error: {error}", style="red")
        sys.exit(2)
    except Fault as error:
        errors.print(f"fault: {error}", style="red")
        sys.exit(1)
    except Exception as error:
        if (usage := getattr(error, "format_message", None)) is None:
            raise
        errors.print(f"error: {usage()}", style="red")
        sys.exit(2)


def _progress() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not console.is_terminal,  # plain lines there instead
    )


def _reporter() -> Any:
    """A context that shows a fit: a live bar in a terminal, a line per log record elsewhere."""
    from imletriton.fitting import Reporter

    class Shown(Reporter):
        def __init__(self) -> None:
            self.bar = _progress()

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
            self.steps = self.bar.add_task("training", total=total, completed=step, figures="")
            self.began = (time.perf_counter(), step, total)
            self.bar.start()

        def note(self, text: str) -> None:
            self.bar.console.print(text)

        def pool(self, done: int, total: int) -> None:
            self.bar.update(self.pools, completed=done, total=total, visible=done < total)

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


if __name__ == "__main__":
    main()
