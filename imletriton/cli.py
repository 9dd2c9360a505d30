"""The command line: parse, call, print. Heavy imports wait until a command runs, and until its input is checked."""

import contextlib
import errno
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from imletriton import __version__
from imletriton.console import (
    FitDisplay,
    WorkDisplay,
    check_table,
    comparison,
    console,
    datasets_table,
    errors,
    fetch,
    fetch_missing,
    metrics_table,
    output,
    recipes_table,
    show_until_end,
    status_table,
)
from imletriton.errors import Fault, InputError, Interrupted, Notice, printable, telling_of_memory
from imletriton.system import torchrun
from imletriton.system.age import process_age
from imletriton.system.stopping import ending

app = typer.Typer(
    help="Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The papers' data sets, and a look at any folder of images.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
recipes_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
SOURCE = "A run, a checkpoint, a folder with a model, or a Hugging Face Hub id USER/NAME; by default the newest run."
Device = Annotated[str | None, typer.Option(help="cuda or cpu; by default cuda where there is one.")]


@app.command()
def fit(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER | RECIPE | --resume [RUN]",
            help="A folder of pictures, for which a recipe is planned; or a recipe's file, or the name of one that "
            "`imletriton recipes` lists; with --resume a run, by default the newest.",
        ),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME-001 and so on.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="End after so many minutes, whatever the recipe says; for a folder by default 30, on a GPU 120."
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="For a folder: the side of the samples in pixels; by default as time allows.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="For a folder: print the plan, and train nothing.")] = False,
    device: Device = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Fetch missing pictures without asking.")] = False,
) -> None:
    """Train a generator on a folder of pictures, in the time that you have, or as a recipe says.

    Pictures of the papers' data sets are fetched where they are missing.
    """
    ending.sentence = "Stopped: nothing was started." if torchrun.is_first() else ""
    from imletriton.commands.fit import find_pictures
    from imletriton.commands.fit import fit as train
    from imletriton.commands.fit import plan as make_plan
    from imletriton.recipe import Recipe, parse_override

    overrides = dict(parse_override(text) for text in set_ or [])
    with FitDisplay() as display:
        if plan:
            if not (folder := find_pictures(recipe, resume)):
                raise InputError("--plan is for a folder of pictures: a recipe is a plan already.")
            made = make_plan(
                folder, minutes, resolution, device, overrides, display.note, display.pictures, process_age()
            )
            display.note("\n".join(f"  {line}" for line in made.lines))
            return
        run = train(
            recipe,
            run_dir,
            device,
            resume,
            display,
            minutes,
            resolution,
            overrides,
            lambda source: fetch_missing(source, yes),
            process_age(),
        )
    if not torchrun.is_first():
        return
    from imletriton.runs.checkpoint import best_checkpoint

    newest = run.checkpoints[-1]
    console.print(f"\nDone. {run.path} holds the trained generator.")
    console.print(f"  samples      {run.samples / f'{newest.name}.png'}")
    console.print(f"  checkpoint   {newest}")
    if (best := best_checkpoint(run.path)) != newest:
        console.print(f"  the best     {best}")
    console.print(f"  curves       tensorboard --logdir {shlex.quote(str(run.path))}")
    if Recipe.load(run.recipe_file).generator.makes_images:
        console.print(f"Next: imletriton gen {shlex.quote(str(run.path))} --n 100", style="bold")


@app.command()
def gen(
    run: Annotated[Path | None, typer.Argument(help=SOURCE)] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many samples; by default 64.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sample k depends on the seed, by default 0, and k alone.")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Latent codes that `imletriton project` found, in place of a seed's.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="More like this picture, which `imletriton gen` or `imletriton explore` saved.")
    ] = None,
    distance: Annotated[
        float | None,
        typer.Option(help="How far from that picture, up to 1, where nothing is left of it; by default 0.3."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; by default RUN/gen/STEP-seed-SEED.")] = None,
    device: Device = None,
) -> None:
    """Write samples as PNG files; called again, it writes those that are missing."""
    from imletriton.commands.checks import check_generate
    from imletriton.runs.run import newest_run
    from imletriton.share.latents import check_latents
    from imletriton.share.origin import check_like

    if from_ and (n is not None or seed is not None):
        raise InputError("--from says which samples are written: leave --n and --seed out.")
    if from_ and like:
        raise InputError("--from and --like both say which samples are written: leave one of them out.")
    if distance is not None and not like:
        raise InputError("--distance is how far samples are from a picture: name it with --like FILE.png.")
    distance = 0.3 if distance is None else distance
    n, seed = check_latents(from_) if from_ else 64 if n is None else n, seed or 0
    check_generate(n, seed, device)
    if like:
        check_like(like, distance)
    if run is None:
        run = newest_run().path
        console.print(f"The newest run is {run}.")
    from imletriton.commands.gen import generate

    began = time.perf_counter()
    with WorkDisplay() as display:
        folder, new, damaged = generate(run, n, seed, out, device, display, from_, like, distance)
    kept = f" ({damaged} of them were there, but damaged)" if damaged else ""
    kept += f", {n - new} were there already" if new < n else ""
    held = f"{n} sample{'s' * (n != 1)}"
    console.print(f"{folder} holds {held}: {new} made in {time.perf_counter() - began:.1f} s{kept}.")


@app.command("eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(help=SOURCE)] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures to measure in place of a model's samples, whatever generated them."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Compare with these pictures; by default those of the run.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Of fid, kid, precision, recall, authenticity, backtracking; by default all that can be measured."
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", help="How many samples; precision, recall and authenticity take 1,000 at most.")
    ] = 5000,
    weights: Annotated[
        str, typer.Option(help="Of the networks that the metrics use: pretrained, or random.")
    ] = "pretrained",
    as_json: Annotated[bool, typer.Option("--json", help="Print what eval.json holds, and nothing else.")] = False,
    device: Device = None,
) -> None:
    """Measure the samples of a model, or any folder's pictures, by the papers' metrics."""
    from imletriton.commands.checks import check_evaluate
    from imletriton.system.checks import check_device

    if weights not in ("pretrained", "random"):
        raise InputError(f"--weights {weights!r} is not known: use pretrained or random.")
    wanted = [name.strip() for name in metrics.split(",")] if metrics else None
    if device is not None:
        check_device(device)
    source, pictures = check_evaluate(run, samples, data, wanted, n)
    judged = samples or (source.title if source else "")
    errors.print(f"imletriton {__version__} compares {judged} with {pictures}: loading PyTorch.")
    from imletriton.commands.eval import evaluate as judge

    warnings: list[str] = []
    with WorkDisplay() as display:
        pretrained = weights == "pretrained"
        result = judge(source, samples, data, wanted, n, pretrained, device, display, warnings.append)
    if as_json:
        print(json.dumps(result.to_json(), indent=1), file=output)
    else:
        console.print(metrics_table(result))
        for note in [*result.notes, *([result.copies] if result.copies else [])]:
            console.print(f"- {note}")
        if result.written:
            console.print(f"Written to {result.written}.")
    for sentence in warnings:
        errors.print(f"warning: {sentence}", style="yellow")


@app.command()
def show(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [VIEW]",
            help=f"{SOURCE} And what to draw: samples, nearest, interpolate, curves, latents, thresholds or distances; "
            "all of them when left out. Or video: samples that change into each other, in a loop.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The PNG file of one picture, or .mp4 or .webp of a video; by default in RUN/figures/."),
    ] = None,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Interpolate between these files of latent codes, which `imletriton project` writes."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="The length of a video; by default 10.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="The seeds whose first samples a video passes, such as 1,5,9; by default 0,1 and so on."),
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Columns and rows of a video; by default 1x1.")] = None,
    device: Device = None,
) -> None:
    """Draw a model: its samples, charts of its training, or a video."""
    from imletriton.commands.checks import VIEWS, check_show
    from imletriton.share.video import VIDEO

    words = words or []
    views = [word for word in words[-1:] if len(words) == 2 or word in (*VIEWS, VIDEO)]  # one other word is a run
    sources = words[: len(words) - len(views)]
    if len(sources) > 1:
        raise InputError(f"show takes a run and what to show, not {shlex.join(words)}.")
    if out is not None and not views:
        example = shlex.join(["imletriton", "show", *sources, "samples", "--out", str(out)])
        raise InputError(f"--out is for one picture: name it, such as `{example}`.")
    view, named = views[0] if views else None, sources[0] if sources else None
    if view == VIDEO:
        if between:
            raise InputError("--between is not for a video: leave it out.")
        from imletriton.share.video import video

        options = 10.0 if seconds is None else seconds, whole_numbers("--seeds", seeds), columns_and_rows(grid)
        with WorkDisplay() as display:
            console.print(f"  {VIDEO:12} {video(named, out, *options, device, display)}")
        return
    if flags := [
        flag for flag, value in (("--seconds", seconds), ("--seeds", seeds), ("--grid", grid)) if value is not None
    ]:
        raise InputError(f"{flags[0]} is for a video: see `imletriton show video`.")
    source = check_show(named, view, out, between)
    from imletriton.commands.show import show as draw

    reasons: dict[str, str] = {}
    for name, path in draw(source, view, out, reasons.__setitem__, between).items():
        console.print(f"  {name:12} {path}")
    for name, reason in reasons.items():
        console.print(f"  {name:12} not drawn: {reason}", style="dim")


def whole_numbers(flag: str, text: str | None) -> list[int] | None:
    """Read numbers such as 1,5,9."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of whole numbers such as 1,5,9.") from None


def columns_and_rows(text: str | None) -> tuple[int, int]:
    """Read the size of a grid, such as 3x2."""
    if text is None:
        return 1, 1
    if (found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", text, re.ASCII)) is None:
        raise InputError(f"--grid {text!r} is not known: write columns and rows such as 3x2.")
    return int(found[1]), int(found[2])


@app.command()
def project(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures of any size.", show_default=False)],
    run: Annotated[Path | None, typer.Option(help=SOURCE)] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the latent codes; by default RUN/projected.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random latent codes that the search begins with.")] = 0,
    device: Device = None,
) -> None:
    """Find the latent codes of photos, and draw each photo beside what the model makes of its code.

    For each photo this writes a picture NAME.png, and a file NAME.safetensors for `imletriton gen --from` and
    `imletriton show interpolate --between`.
    """
    from imletriton.share.project import project as find_latents

    with WorkDisplay() as display:
        found = find_latents(photos, run, out, device, seed=seed, progress=display, note=console.print)
    for photo, latents, picture, distance in found:
        console.print(f"{photo}: {latents} and {picture.name} beside it, at a distance of {distance:.3g}")
    example = shlex.join(["imletriton", "gen", *([str(run)] if run else []), "--from", str(found[0].latents)])
    console.print(f"Next: {example}", style="bold")


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help=SOURCE)] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file; by default RUN/report.html.")] = None,
) -> None:
    """Write a run up as one HTML file: its pictures, charts, metrics, recipe and environment."""
    from imletriton.commands.report import report as write_report

    path = write_report(run, out)
    console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB) needs no network: open it in a browser.")


@app.command()
def explore(
    run: Annotated[Path | None, typer.Argument(help=SOURCE)] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets others open the page.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The port; by default the first free one from 7860 on.")] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a Hugging Face Space with the page into a new folder.")
    ] = None,
    device: Device = None,
) -> None:
    """Open a page to play with a model: neighbours, mixes, interpolations, photos to project, favourites."""
    if space is not None:
        from imletriton.share.space import write_space

        console.print(f"{write_space(run, space)} holds a Hugging Face Space. To try it here:")
        console.print(f"  cd {shlex.quote(str(space))} && python app.py")
        return
    from imletriton.share.explore import explore as show_page

    def ready(address: str) -> None:
        console.print(f"Open {address} in a browser. Ctrl-C stops it.", style="bold")

    show_page(run, host, port, device, ready=ready, note=console.print)


@app.command()
def push(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] USER/NAME", help=f"{SOURCE} And last the model's id on the Hub.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Let only you see a model that is new there.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write what would be uploaded into this folder, to look at, and upload nothing.")
    ] = None,
    device: Device = None,
) -> None:
    """Upload a model to the Hugging Face Hub, with a card that has samples, metrics, recipe and licence."""
    from imletriton.share.push import push as upload

    *sources, repo = words
    if len(sources) > 1:
        raise InputError(f"push takes a run and the model's id on the Hub, USER/NAME, not {shlex.join(words)}.")
    place = upload(sources[0] if sources else None, repo, private, out, device, console.print)
    console.print(f"{place} holds what would be uploaded." if out else f"Uploaded: {place}", style="bold")


@app.command()
def export(
    run: Annotated[Path | None, typer.Argument(help=SOURCE)] = None,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an ONNX file: latent codes to pictures, for any program.")
    ] = None,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page that draws new samples in any browser.")
    ] = None,
    onnxruntime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The unpacked npm package onnxruntime-web, for the page; by default npm fetches it once.",
        ),
    ] = None,
) -> None:
    """Write a model as an ONNX file or as a web page, checked against PyTorch."""
    from imletriton.share.export.files import export_onnx, export_web

    if onnx is None and web is None:
        raise InputError("export needs --onnx FILE, --web DIR, or both.")
    if onnx:
        with WorkDisplay() as display:
            made = export_onnx(run, onnx, display, errors.print)
        console.print(f"{made.path} ({made.bytes / 1e6:.1f} MB) turns latent codes z into pictures. {comparison(made)}")
    if web:
        with WorkDisplay() as display:
            made = export_web(run, web, onnxruntime, display, errors.print)
        console.print(f"{made.path} ({made.bytes / 1e6:.1f} MB) is a page for any web server. {comparison(made)}")
        console.print("Next, and then open http://localhost:8000 in a browser:")
        console.print(f"  python -m http.server --directory {shlex.quote(str(web))}", style="bold")


@app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(help="A run's folder; by default the run that was started or saved last.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Refresh until the run ends.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, and nothing else; with --follow, when the run ends.")
    ] = False,
) -> None:
    """Show how a run is doing: what trains, how far it is, the time left, and its newest samples and figures."""
    from imletriton.commands.status import status as tell

    ending.sentence = "No longer followed; the run itself goes on."
    found = tell(run)
    if follow and found.state == "training":
        watched = Path(found.run)
        show_until_end(lambda: tell(watched, thorough=False), quiet=as_json)
        found = tell(watched)
    if as_json:
        print(json.dumps(found.to_json(), indent=1), file=output)
    else:
        console.print(status_table(found))


@app.command()
def doctor() -> None:
    """Show what this machine can train and what is missing; exit code 1 where training would fail."""
    from imletriton.commands.doctor import examine

    marks = {"good": ("ok", "green"), "missing": ("--", "yellow"), "broken": ("!!", "bold red")}
    broken = []
    for finding in examine():
        mark, style = marks[finding.state]
        console.print(f"{mark}  {finding.subject}: {finding.detail}", style=style)
        broken += [finding.subject] if finding.state == "broken" else []
    if broken:
        raise Fault(f"training cannot run here: {', '.join(broken)}.")


@data_app.command("list")
def data_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, and nothing else.")] = False,
) -> None:
    """List the papers' data sets: their sources, licences, published FID, and which are here."""
    from imletriton.data.fetching import listing

    sets = listing()
    if as_json:
        print(json.dumps(sets, indent=1), file=output)
        return
    console.print(datasets_table(sets), soft_wrap=False)
    console.print("\nAdaptive, RS: published FID of Adaptive IMLE and RS-IMLE; lower is better.", soft_wrap=False)
    for licence in sorted({known["licence"] for known in sets}, reverse=True):
        console.print(f"{licence[0].upper()}{licence[1:]}.", soft_wrap=False)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set, as `imletriton data list` names it.")],
) -> None:
    """Fetch a data set into the folder that its recipe names.

    With the environment variable IMLETRITON_DATASETS_URL set, archives come from below that address instead.
    """
    from imletriton.data.catalogue import find

    if fetch(find(name)):
        console.print(f"Next: imletriton fit {name}", style="bold")


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images.", show_default=False)],
    resolution: Annotated[int, typer.Option(help="List the images that are smaller than this, in pixels.")] = 256,
) -> None:
    """Look for broken, small and duplicate images, mirrored ones too; exit code 2 where some are broken."""
    from imletriton.data.checking import check

    with WorkDisplay() as display:
        result = check(folder, resolution, display)
    console.print(check_table(result, resolution), soft_wrap=False)
    if result.skipped:
        console.print(result.skipped)
    if broken := len(result.broken):
        raise InputError(f"{broken} of {broken + result.images} images in {folder} are broken: repair or remove them.")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that `imletriton fit` knows by their names, or copy one to edit."""
    if context.invoked_subcommand:
        return
    from imletriton.commands.recipes import recipes as listed

    console.print(recipes_table(listed()), soft_wrap=False)
    console.print("\nTrain one by `imletriton fit NAME`, or copy it to edit by `imletriton recipes copy NAME`.")


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, as `imletriton recipes` lists it.")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The file, or a folder for it; by default in the current folder."),
    ] = None,
) -> None:
    """Copy a recipe, with its comments, to edit it; a file that exists is never overwritten."""
    from imletriton.commands.recipes import copy_recipe

    path = copy_recipe(name, file)
    console.print(f"{path} is yours to edit. Then: imletriton fit {shlex.quote(str(path))}")


# What the command line calls the parameters that messages name. Recipe keys are changed with --set.
FLAGS = {
    "n": "--n",
    "between": "--between",
    "seconds": "--seconds",
    "seeds": "--seeds",
    "grid": "--grid",
    "seed": "--seed",
    "out": "--out",
    "device": "--device",
    "metrics": "--metrics",
    "samples": "--samples",
    "data": "--data",
    "run_dir": "--run-dir",
    "host": "--host",
    "port": "--port",
    "like": "--like",
    "distance": "--distance",
    "space": "--space",
    "minutes": "--minutes",
    "resolution": "--resolution",
    "resume=True": "--resume",
    "pretrained=False": "--weights random",
    "onnxruntime": "--onnxruntime",
}


def name_flags(message: str) -> str:
    """Put flags in the place of the parameters that a message of the library names as Python code.

    `n` becomes --n, `out=DIR` becomes --out DIR, `data.source=DIR` becomes --set data.source=DIR; what else stands in
    backticks stays as it is.
    """

    def flag(code: re.Match[str]) -> str:
        name, value = code["name"], (code["value"] or "").strip("'\"")
        if code["code"] in FLAGS:
            return FLAGS[code["code"]]
        if re.match(r"(data|generator|distance|selection|train|log)\.", name):
            return f"--set {name}={value or '...'}"
        return f"{FLAGS[name]} {value}" if name in FLAGS else code[0]

    return re.sub(r"`(?P<code>(?P<name>[a-z_.]+)(=(?P<value>[^`\s]+))?)`", flag, message)


@telling_of_memory
def _run() -> Any:
    """Run the command that was given, and print the library's notices."""
    with _printing_notices():
        return app(sys.argv[1:] or ["--help"], standalone_mode=False)


@contextlib.contextmanager
def _printing_notices() -> Iterator[None]:
    """Print the library's notices, each once; other warnings stay as they are."""
    show, told = warnings.showwarning, set[str]()  # Python's own memory is lost when anyone changes its filters

    def print_notice(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, Notice):
            show(message, category, *place, **more)
        elif torchrun.is_first() and str(message) not in told:
            told.add(str(message))
            errors.print(f"warning: {name_flags(str(message))}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = print_notice
        yield


def _program() -> str:
    """How this program was started, by itself or by torchrun; what torchrun was told of other machines is left open."""
    processes, machines = torchrun.processes(), torchrun.machines()
    if processes == 1:
        return "imletriton"
    several = f"--nnodes={machines} --rdzv-backend=... --rdzv-endpoint=... " if machines > 1 else ""
    return f"torchrun {several}--nproc-per-node={processes // machines} -m imletriton"


def main() -> None:
    """Run the command line; the exit codes are 0 done, 1 a fault, 2 bad input, 130 interrupted."""
    try:
        code = _run()
        output.check()
        sys.exit(code)
    except Interrupted as stopped:
        go_on = f"{_program()} fit --resume {shlex.quote(str(stopped.run))}"
        go_on += f" --device {stopped.device}" if stopped.device else ""
        if torchrun.is_first():
            errors.print(f"\n{stopped} Go on with:\n  {go_on}")
        sys.exit(130)
    except typer.Abort:  # the end of the input, instead of an answer
        errors.print(f"\n{ending.sentence}")
        sys.exit(130)
    except InputError as error:
        if torchrun.is_first():
            errors.print(f"error: {name_flags(str(error))}", style="red")
        sys.exit(2)
    except Fault as error:
        errors.print(f"fault: {name_flags(str(error))}", style="red")
        sys.exit(1)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            told = f"{printable(str(error.filename))[:40]}... is too long for the name of a file."  # type: ignore[attr-defined]
        elif (usage := getattr(error, "format_message", None)) is None:
            raise
        else:
            told = usage()
        errors.print(f"error: {told}", style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
