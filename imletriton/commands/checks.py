"""What is wrong with a command's input, told before PyTorch is loaded, which takes seconds.

The command line asks here first; the commands themselves ask again, for those who call them from Python.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imletriton.data import count_points
from imletriton.data.files import list_images
from imletriton.errors import InputError, suggestion
from imletriton.recipe import Recipe
from imletriton.runs import run as runs
from imletriton.runs.run import Run, newest_checkpoint, newest_run
from imletriton.runs.schema import METRICS

FIGURES = ("samples", "nearest", "interpolate", "curves", "latents", "thresholds", "distances")  # of a run
MAY_CHANGE = ("train.iterations", "log.")  # keys that a resumed run may have changed


def check_device(device: str) -> None:
    """Raise InputError where a device is neither cuda nor cpu, with a number or without."""
    if not re.fullmatch(r"(cpu|cuda)(:(0|[1-9]\d?))?", device):
        raise InputError(f"--device {device!r} is not known: use cuda or cpu.")


def check_place(folder: Path, path: Path | str, mend: str) -> None:
    """Raise InputError, naming the path, where its folder can neither be made nor written to; nothing is left there."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix="."):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {mend}.") from error


def find_run(recipe: Recipe, run_dir: str | Path | None, resume: bool) -> Run | None:
    """The run to go on with or to make; None: the next free one of the recipe's name.

    Raises InputError where there is a run already, or none to resume, or one that this recipe cannot go on with.
    """
    if not resume:
        if run_dir and Run(Path(run_dir)).recipe_file.exists():
            raise InputError(f"{run_dir} holds a run already: add --resume to go on with it, or name another folder.")
        return Run(Path(run_dir)) if run_dir else None
    path = Path(run_dir) if run_dir else next(reversed(runs.runs_of(recipe.name)), None)
    if path is None or not (run := Run(path)).recipe_file.is_file():
        raise InputError(f"{path or f'runs/{recipe.name}-*'} holds no run to resume: start one without --resume.")
    changed = [k for k in recipe.changed_keys(Recipe.load(run.recipe_file)) if not k.startswith(MAY_CHANGE)]
    if changed:
        raise InputError(
            f"The recipe differs from {run.recipe_file} in {', '.join(changed)}: resume with the same values, "
            "or start a new run."
        )
    if (newest := newest_checkpoint(path)) and (step := int(newest.name)) > recipe.train.iterations:
        raise InputError(f"{path} is at step {step} already: set train.iterations to more than {step}.")
    return run


def check_fit(recipe: Recipe, run_dir: Path | None, resume: bool, device: str | None) -> None:
    """Raise InputError for a device that is none, and where this recipe cannot be trained in the run's folder."""
    if device is not None:
        check_device(device)
    if run := find_run(recipe, run_dir, resume):
        check_place(run.path, run.path, "choose another --run-dir")
    else:
        check_place(runs.RUNS, f"{runs.RUNS}/", "choose a folder with --run-dir")


def check_data(recipe: Recipe) -> None:
    """Raise InputError where a recipe's data points are missing, or its pool is too small for them."""
    recipe.selection.pool_size(count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout))


def open_run(path: Path) -> tuple[Run, Recipe]:
    """A run that has a checkpoint, and its recipe. Raises InputError where there is none."""
    run = Run(path)
    if not run.recipe_file.is_file() or not run.checkpoints:
        raise InputError(f"{path} holds no run with a checkpoint: name a run's folder, such as runs/dog-001.")
    return run, Recipe.load(run.recipe_file)


def open_checkpoint(source: Path) -> tuple[Run, Path, Recipe]:
    """A run, its newest checkpoint or the one that source is, and its recipe. Raises InputError where it is neither."""
    folder = newest_checkpoint(source)
    run = Run(source)
    if folder is None and (source / "model.safetensors").is_file():
        folder = source.resolve()
        run = Run(folder.parents[1])
    if folder is None or not run.recipe_file.is_file():
        raise InputError(f"{source} holds no run with a checkpoint: name a run's folder, or use --samples DIR.")
    return run, folder, Recipe.load(run.recipe_file)


def sample_files(path: Path) -> list[Path]:
    """The pictures in a folder of samples. Raises InputError where it is none, or holds fewer than two."""
    if not path.is_dir():
        raise InputError(f"--samples {path} is no folder: name a folder of pictures.")
    files = list_images(path)
    if len(files) < 2:
        raise InputError(f"--samples {path} holds one picture only: give at least two.")
    return files


def check_evaluate(
    source: Path | None, samples: Path | None, data: str | None, metrics: Sequence[str] | None, n: int
) -> str:
    """The source of the pictures to compare with; the arguments are those of `evaluate`.

    Raises InputError for unknown metrics, and for sources that are missing or do not suit.
    """
    for name in metrics or ():
        if name not in METRICS:
            raise InputError(f"--metrics: {name!r} is not known: {suggestion(name.lower(), METRICS)}")
    if n < 2:
        raise InputError(f"--n must be at least 2, not {n}.")
    recipe = open_checkpoint(source)[2] if source else None
    where = data or (recipe.data.source if recipe else None)
    if where is None or (source is None and samples is None):
        raise InputError("eval needs a run, or --samples DIR with --data SOURCE to compare them with.")
    if samples:
        sample_files(samples.expanduser())
    if metrics and "backtracking" in metrics and (samples or not recipe or not recipe.data.holdout):
        raise InputError("backtracking needs a run that was trained with data.holdout, such as 0.1.")
    if where == "toy2d":
        raise InputError(f"{where} holds points, not pictures: `imletriton show` draws them.")
    count_points(where)
    return where


def check_show(run: Path | None, what: str | None, out: Path | None) -> Path:
    """The run to draw, by default the newest. Raises InputError as `show` does, for what needs no drawing."""
    if what is not None and what not in FIGURES:
        hint = suggestion(what, FIGURES)
        raise InputError(f"{what!r} is neither a run's folder nor something that can be shown: {hint}")
    path = run or newest_run().path
    if out is not None and what is None:
        raise InputError(f"--out is for one picture: name it, such as `imletriton show {path} samples --out {out}`.")
    open_run(path)
    place = out or path / "figures" / f"{what}.png"
    check_place(place.parent, place, "choose another file with --out")
    return path
