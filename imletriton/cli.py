"""The command line: parse, call, print. Heavy imports wait until a command runs, and until its input is checked."""

import difflib
import errno
import json
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from imletriton import __version__
from imletriton.console import FitDisplay, WorkDisplay, console, errors, fetch, fetch_missing, output
from imletriton.errors import Fault, InputError, Interrupted, explain_out_of_memory, printable, suggestion
from imletriton.messages import how_to_resume, name_flags, printing_notices
from imletriton.system import torchrun
from imletriton.system.age import process_age
from imletriton.system.stopping import ending


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  imletriton {line}" for line in lines)])


def option(text: str, *names: str, **more: Any) -> Any:
    """An option with its help."""
    return typer.Option(*names, help=text, **more)


def argument(metavar: str, text: str) -> Any:
    """A positional argument with its help."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("fit path/to/pictures --minutes 30", "gen -n 100"),
)
data_app = typer.Typer(rich_markup_mode=None, epilog=examples("data get dog", "data check path/to/pictures"))
recipes_app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, epilog=examples("recipes", "recipes copy dog mine.toml")
)
app.add_typer(data_app, name="data", help="Fetch the papers' data sets, or check a folder of images.")
app.add_typer(recipes_app, name="recipes")


def command(*lines: str, of: typer.Typer = app, name: str | None = None) -> Callable[..., Any]:
    """Make a function a command, whose help ends with these examples."""
    return of.command(name, epilog=examples(*lines))


RUN = "A run, a checkpoint, a folder with a model, or a Hugging Face Hub id USER/NAME; by default the newest run."
Source = Annotated[Path | None, argument("RUN", RUN)]
Device = Annotated[str | None, option("cuda or cpu; by default cuda where there is a CUDA GPU.")]
Seed = Annotated[int | None, option("The random seed; by default 0.")]
OUT, N = ("--out", "-o"), ("--n", "-n")


def show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"imletriton {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, option("Show the version and exit.", "--version", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE."""


@command("fit path/to/pictures --minutes 30", "fit dog --set train.batch_size=8 --seed 1")
def fit(
    recipe: Annotated[
        Path | None,
        argument(
            "FOLDER | RECIPE | --resume [RUN]",
            "A folder of pictures, for which a recipe is planned; or a recipe, by its file or by a name that "
            "`imletriton recipes` lists; with --resume a run, by default the newest.",
        ),
    ] = None,
    run_dir: Annotated[Path | None, option("The run's folder; by default runs/NAME-001 and so on.")] = None,
    resume: Annotated[bool, option("Resume a run from its newest checkpoint.", "--resume")] = False,
    minutes: Annotated[float | None, option("Stop after this time; for a folder by default 30, on a GPU 120.")] = None,
    resolution: Annotated[int | None, option("Pixels a side, for a folder; by default as time allows.")] = None,
    plan: Annotated[bool, option("For a folder: print the plan, and train nothing.", "--plan")] = False,
    device: Device = None,
    seed: Annotated[int | None, option("The random seed; short for --set train.seed=SEED.")] = None,
    set_: Annotated[
        list[str] | None,
        option("Change a key of the recipe: see `imletriton recipes keys`.", "--set", metavar="SECTION.KEY=VALUE"),
    ] = None,
    yes: Annotated[bool, option("Fetch missing pictures without asking.", "--yes")] = False,
) -> None:
    """Train a generator on a folder of pictures, or by a recipe.

    Pictures of the papers' data sets are fetched where they are missing.
    """
    ending.sentence = "Stopped: nothing was started." if torchrun.is_first() else ""
    from imletriton.commands.fit import find_pictures
    from imletriton.commands.fit import fit as train
    from imletriton.commands.fit import plan as make_plan
    from imletriton.recipe import Recipe, parse_override

    overrides = dict(parse_override(text) for text in set_ or [])
    if seed is not None:
        overrides["train.seed"] = seed
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


@command("gen -n 5000 --seed 1", "gen runs/dog-001 --like favourite.png --distance 0.2 -n 16")
def gen(
    run: Source = None,
    n: Annotated[int | None, option("How many samples; by default 64.", *N)] = None,
    seed: Annotated[int | None, option("Sample k depends on the seed, by default 0, and k alone.")] = None,
    latents: Annotated[
        Path | None, option("Draw the latent codes in this file of `imletriton project`.", "--from")
    ] = None,
    like: Annotated[Path | None, option("More like this picture, which gen or explore has saved.")] = None,
    distance: Annotated[float | None, option("How far from it, up to 1: nothing in common; by default 0.3.")] = None,
    out: Annotated[Path | None, option("The folder; by default RUN/gen/STEP-seed-SEED.", *OUT)] = None,
    device: Device = None,
) -> None:
    """Write samples as PNG files. Called again, it writes those that are missing."""
    from imletriton.commands.gen import generate

    began = time.perf_counter()
    with WorkDisplay() as display:
        made = generate(run, n, seed, out, device, display, latents, like, distance, console.print)
    held = sum(1 for _ in made.folder.glob("*.png"))
    kept = f" ({made.damaged} of them were there, but damaged)" if made.damaged else ""
    kept += f", {held - made.new} were there already" if made.new < held else ""
    seconds = time.perf_counter() - began
    console.print(f"{made.folder} holds {held} sample{'s' * (held != 1)}: {made.new} made in {seconds:.1f} s{kept}.")


@command("eval --metrics fid,recall -n 1000", "eval --samples path/to/samples --data path/to/pictures", name="eval")
def evaluate(
    run: Source = None,
    samples: Annotated[Path | None, option("Judge this folder's pictures, instead of a model's samples.")] = None,
    data: Annotated[str | None, option("Compare with these pictures; by default those of the run.")] = None,
    metrics: Annotated[
        str | None,
        option("Of fid, kid, precision, recall, authenticity, backtracking; by default all that can be measured."),
    ] = None,
    n: Annotated[int, option("How many samples; precision, recall and authenticity take at most 1,000.", *N)] = 5000,
    seed: Seed = None,
    weights: Annotated[str, option("Of the networks that the metrics use: pretrained or random.")] = "pretrained",
    out: Annotated[Path | None, option("The JSON file; by default RUN/eval.json, for a model's samples.", *OUT)] = None,
    as_json: Annotated[bool, option("Print that JSON, and nothing else.", "--json")] = False,
    device: Device = None,
) -> None:
    """Measure a model's samples, or any folder's pictures, by the papers' metrics."""
    from imletriton.commands.eval import evaluate as judge

    if weights not in ("pretrained", "random"):
        raise InputError(f"--weights {weights!r} is not known: use pretrained or random.")
    wanted = [name.strip() for name in metrics.split(",")] if metrics else None
    with WorkDisplay() as display:
        pretrained = weights == "pretrained"
        result = judge(run, samples, data, wanted, n, pretrained, device, display, seed or 0, out, errors.print)
    if as_json:
        print_json(result.to_json())
        return
    from imletriton.tables import metrics_table

    console.print(metrics_table(result))
    for note in [*result.notes, *([result.copies] if result.copies else [])]:
        console.print(f"- {note}")
    if result.written:
        console.print(f"Written to {result.written}.")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1), file=output)


@command("show nearest -o recall.png", "show runs/dog-001 video --seeds 1,5,9 --grid 3x3")
def show(
    run: Source = None,
    view: Annotated[
        str | None,
        argument(
            "VIEW",
            "samples, nearest, interpolate, curves, latents, thresholds or distances; by default all of them. "
            "Or video: samples that change into each other, in a loop.",
        ),
    ] = None,
    n: Annotated[int | None, option("How many samples, for samples and nearest; by default 64 and 1,000.", *N)] = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, option("A .png, or .mp4 or .webp for a video; by default in RUN/figures/.", *OUT)
    ] = None,
    between: Annotated[
        tuple[Path, Path] | None, option("Interpolate between two files that `imletriton project` wrote.")
    ] = None,
    seconds: Annotated[float | None, option("The length of a video; by default 10.")] = None,
    seeds: Annotated[
        str | None, option("The random seeds that a video passes, such as 1,5,9; by default 0,1,...")
    ] = None,
    grid: Annotated[str | None, option("Columns and rows of a video; by default 1x1.")] = None,
    device: Device = None,
) -> None:
    """Draw a model: its samples, charts of its training, or a video."""
    source, view = run_and_view(None if run is None else str(run), view)
    of_views = {"--n": n, "--seed": seed, "--between": between}
    of_videos = {"--seconds": seconds, "--seeds": seeds, "--grid": grid}
    for flag, value in (of_views if view == "video" else of_videos).items():
        if value is not None:
            remedy = "leave it out" if view == "video" else "see `imletriton show video`"
            raise InputError(f"{flag} is {'not ' if view == 'video' else ''}for a video: {remedy}.")
    if view == "video":
        from imletriton.share.video import video

        length = 10.0 if seconds is None else seconds
        with WorkDisplay() as display:
            file = video(source, out, length, whole_numbers(seeds), columns_and_rows(grid), device, display)
        console.print(f"  {view:12} {file}")
        return
    from imletriton.commands.show import show as draw

    reasons: dict[str, str] = {}
    for name, path in draw(source, view, out, reasons.__setitem__, between, n, seed or 0, device).items():
        console.print(f"  {name:12} {path}")
    for name, reason in reasons.items():
        console.print(f"  {name:12} not drawn: {reason}", style="dim")


def run_and_view(run: str | None, view: str | None) -> tuple[str | None, str | None]:
    """Tell the words of `show` apart: where there is one, a name of a view is the view, anything else is a run."""
    from imletriton.commands.show import VIEWS

    views = (*VIEWS, "video")
    if view is None and run in views:
        return None, run
    if view is not None and view not in views:
        raise InputError(f"{view!r} cannot be shown: {suggestion(view, views)}")
    if view is None and run and not Path(run).exists() and (near := difflib.get_close_matches(run, views, 1, 0.8)):
        raise InputError(f"{run} is neither a run nor a view: did you mean {near[0]!r}?")
    return run, view


def whole_numbers(text: str | None) -> list[int] | None:
    """Read the seeds of a video, such as 1,5,9."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r} is not a list of whole numbers such as 1,5,9.") from None


def columns_and_rows(text: str | None) -> tuple[int, int]:
    """Read the grid of a video, such as 3x2."""
    if (found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", text or "1x1", re.ASCII)) is None:
        raise InputError(f"--grid {text!r} is not known: write columns and rows such as 3x2.")
    return int(found[1]), int(found[2])


@command("project photo.jpg", "project first.jpg second.jpg --run runs/dog-001 -o latents")
def project(
    photos: Annotated[list[Path], argument("PHOTO", "Pictures of any size.")],
    run: Annotated[Path | None, option(RUN)] = None,
    seed: Seed = None,
    out: Annotated[Path | None, option("The folder; by default RUN/projected.", *OUT)] = None,
    device: Device = None,
) -> None:
    """Find the latent codes of photos.

    For each photo it writes NAME.png, the photo beside what the model makes of its code, and NAME.safetensors, which
    `imletriton gen --from` and `imletriton show interpolate --between` take.
    """
    from imletriton.share.project import project as find_latents

    with WorkDisplay() as display:
        found = find_latents(photos, run, out, device, seed=seed or 0, progress=display, note=console.print)
    for photo, latents, picture, distance in found:
        console.print(f"{photo}: {latents} and {picture.name} beside it, at a distance of {distance:.3g}")
    example = shlex.join(["imletriton", "gen", *([str(run)] if run else []), "--from", str(found[0].latents)])
    console.print(f"Next: {example}", style="bold")


@command("report", "report runs/dog-001 -o dog.html")
def report(
    run: Source = None,
    out: Annotated[Path | None, option("The HTML file; by default RUN/report.html.", *OUT)] = None,
    device: Device = None,
) -> None:
    """Write a run up as one HTML file, with pictures, charts, metrics and recipe."""
    from imletriton.commands.report import report as write_report

    path = write_report(run, out, device)
    console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB) needs no network: open it in a browser.")


@command("explore", "explore runs/dog-001 --space my-space")
def explore(
    run: Source = None,
    host: Annotated[str, option("The address to listen on; 0.0.0.0 lets others open the page.")] = "127.0.0.1",
    port: Annotated[int | None, option("The port; by default the first free one from 7860 on.")] = None,
    space: Annotated[Path | None, option("Write the page as a Hugging Face Space.", metavar="DIR")] = None,
    device: Device = None,
) -> None:
    """Open a page to play with a model: neighbours, mixes, photos, favourites."""
    if space is not None:
        from imletriton.share.space import write_space

        console.print(f"{write_space(run, space)} holds a Hugging Face Space. To try it here:")
        console.print(f"  cd {shlex.quote(str(space))} && python app.py")
        return
    from imletriton.share.explore import explore as show_page

    def ready(address: str) -> None:
        console.print(f"Open {address} in a browser. Ctrl-C stops it.", style="bold")

    show_page(run, host, port, device, ready=ready, note=console.print)


@command("push me/dogs -o look-first", "push runs/dog-001 me/dogs --private")
def push(
    words: Annotated[list[str], argument("[RUN] USER/NAME", f"{RUN} And the model's id on the Hub.")],
    private: Annotated[bool, option("Make a new model on the Hub visible to you only.", "--private")] = False,
    out: Annotated[Path | None, option("Write the files into this folder, and upload nothing.", *OUT)] = None,
    device: Device = None,
) -> None:
    """Upload a model to the Hugging Face Hub, with a card that shows it."""
    from imletriton.share.push import push as upload

    *sources, repo = words
    if len(sources) > 1:
        raise InputError(f"push takes a run and the model's id on the Hub, USER/NAME, not {shlex.join(words)}.")
    place = upload(sources[0] if sources else None, repo, private, out, device, console.print)
    console.print(f"{place} holds what would be uploaded." if out else f"Uploaded: {place}", style="bold")


@command("export --onnx model.onnx", "export runs/dog-001 --web page")
def export(
    run: Source = None,
    onnx: Annotated[Path | None, option("Write an ONNX file: latent codes to pictures.", metavar="FILE")] = None,
    web: Annotated[Path | None, option("Write a page that draws samples in any browser.", metavar="DIR")] = None,
    onnxruntime: Annotated[
        Path | None, option("The npm package onnxruntime-web; by default npm fetches it once.", metavar="DIR")
    ] = None,
) -> None:
    """Write a model as an ONNX file or as a web page, checked against PyTorch."""
    from imletriton.share.export.files import export_onnx, export_web
    from imletriton.tables import comparison

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


@command("status --follow", "status runs/dog-001 --json")
def status(
    run: Annotated[Path | None, argument("RUN", "A run; by default the one that was started or saved last.")] = None,
    follow: Annotated[bool, option("Refresh until the run ends.", "--follow")] = False,
    as_json: Annotated[bool, option("Print JSON, and nothing else; with --follow at the end.", "--json")] = False,
) -> None:
    """Show how a run is doing: progress, time left, newest samples and figures."""
    from imletriton import tables
    from imletriton.commands.status import status as ask

    ending.sentence = "No longer followed; the run itself goes on."
    found = ask(run)
    if follow and found.state == "training":
        watched = Path(found.run)
        tables.follow(lambda: ask(watched, thorough=False), quiet=as_json)
        found = ask(watched)
    if as_json:
        print_json(found.to_json())
    else:
        console.print(tables.status_table(found))


@command("doctor", "doctor | grep weights")
def doctor() -> None:
    """Show what this machine can train, and what is missing.

    The exit code is 1 where training would fail.
    """
    from imletriton.commands.doctor import examine

    marks = {"good": ("ok", "green"), "missing": ("--", "yellow"), "broken": ("!!", "bold red")}
    broken = []
    for finding in examine():
        mark, style = marks[finding.state]
        line = f"{mark}  {finding.subject}: {finding.detail}"
        wrapped = textwrap.wrap(line, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        console.print("\n".join(wrapped), style=style)
        broken += [finding.subject] if finding.state == "broken" else []
    if broken:
        raise Fault(f"training cannot run here: {', '.join(broken)}.")


@command("data list", "data list --json", of=data_app, name="list")
def data_list(
    as_json: Annotated[bool, option("Print JSON, and nothing else.", "--json")] = False,
) -> None:
    """List the papers' data sets: sources, licences, published FID."""
    from imletriton.data.fetching import listing

    sets = listing()
    if as_json:
        print_json(sets)
        return
    from imletriton.tables import datasets_table

    console.print(datasets_table(sets), soft_wrap=False)
    console.print("\nAdaptive, RS: published FID of Adaptive IMLE and RS-IMLE; lower is better.", soft_wrap=False)
    for licence in sorted({known["licence"] for known in sets}, reverse=True):
        console.print(f"{licence[0].upper()}{licence[1:]}.", soft_wrap=False)


@command("data get dog", "data get obama", of=data_app, name="get")
def data_get(name: Annotated[str, argument("NAME", "A data set, as `imletriton data list` names it.")]) -> None:
    """Fetch a data set into the folder that its recipe names.

    The environment variable IMLETRITON_DATASETS_URL names a mirror to fetch archives from instead.
    """
    from imletriton.data.catalogue import find

    if fetch(find(name)):
        console.print(f"Next: imletriton fit {name}", style="bold")


@command("data check path/to/pictures", "data check path/to/pictures --resolution 128", of=data_app, name="check")
def data_check(
    folder: Annotated[Path, argument("DIR", "A folder of images.")],
    resolution: Annotated[int, option("List the images that are smaller than this, in pixels.")] = 256,
) -> None:
    """Look for broken, small and duplicate images.

    Mirror images are duplicates too. The exit code is 2 where images are broken.
    """
    from imletriton.data.checking import check
    from imletriton.tables import check_table

    with WorkDisplay() as display:
        result = check(folder, resolution, display)
    console.print(check_table(result, resolution), soft_wrap=False)
    if result.skipped:
        console.print(result.skipped)
    if broken := len(result.broken):
        raise InputError(f"{broken} of {broken + result.images} images in {folder} are broken: repair or remove them.")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with imletriton, copy one, or list all keys."""
    if context.invoked_subcommand:
        return
    from imletriton.commands.recipes import recipes as listed
    from imletriton.tables import recipes_table

    console.print(recipes_table(listed()), soft_wrap=False)
    console.print("\nTrain one by `imletriton fit NAME`, or copy it to edit by `imletriton recipes copy NAME`.")


@command("recipes copy dog", "recipes copy adaptive/dog mine.toml", of=recipes_app, name="copy")
def recipes_copy(
    name: Annotated[str, argument("NAME", "A recipe, as `imletriton recipes` lists it.")],
    file: Annotated[Path | None, argument("FILE", "The file, or a folder for it; by default ./NAME.toml.")] = None,
) -> None:
    """Copy a recipe with its comments, to edit it."""
    from imletriton.commands.recipes import copy_recipe

    path = copy_recipe(name, file)
    console.print(f"{path} is yours to edit. Then: imletriton fit {shlex.quote(str(path))}")


@command("recipes keys", "recipes keys | grep -A 2 epsilon", of=recipes_app, name="keys")
def recipes_keys() -> None:
    """List every key of a recipe: its default, type and meaning."""
    from imletriton.commands.recipes import recipe_keys
    from imletriton.tables import keys_text

    console.print(keys_text(recipe_keys()))
    console.print("\nChange one for a run by `imletriton fit NAME --set SECTION.KEY=VALUE`.")


def main() -> None:
    """Run the command line; the exit codes are 0 done, 1 a fault, 2 bad input, 130 interrupted."""
    try:
        with printing_notices(app):
            code = explain_out_of_memory(app)(sys.argv[1:] or ["--help"], prog_name="imletriton", standalone_mode=False)
        output.check()
        sys.exit(code)
    except Interrupted as stopped:
        if torchrun.is_first():
            errors.print(f"\n{stopped} Resume with:\n  {how_to_resume(stopped)}")
        sys.exit(130)
    except typer.Abort:  # the end of the input, instead of an answer
        errors.print(f"\n{ending.sentence}")
        sys.exit(130)
    except Fault as fault:
        errors.print(f"fault: {name_flags(str(fault), app)}", style="red")
        sys.exit(1)
    except InputError as error:
        if torchrun.is_first():
            errors.print(f"error: {name_flags(str(error), app)}", style="red")
        sys.exit(2)
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
