"""Checks of what `fit` is given, before PyTorch is imported, which takes seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imletriton.data import count_points
from imletriton.errors import InputError
from imletriton.recipe import Recipe, is_packaged
from imletriton.runs import run as runs
from imletriton.runs.opening import open_run
from imletriton.runs.run import Run, newest_checkpoint
from imletriton.runs.trackers import check_trackers
from imletriton.system import torchrun
from imletriton.system.checks import check_device, check_writable

# Keys of the recipe that may change when a run is resumed. Pictures may have moved; their content is checked.
MAY_CHANGE = ("train.iterations", "train.patience", "train.calibrate", "log.", "data.source")


def find_recipe(
    recipe: Recipe | str | Path | None,
    run_dir: str | Path | None,
    resume: bool,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Recipe, str | Path | None]:
    """Find the recipe that `fit` is asked for. A run that is resumed by its folder has its own.

    Args:
        recipe: The recipe, its file, or with `resume` the folder of a run; None with `resume` for the run in `run_dir`,
            by default the newest.
        run_dir: The run's folder.
        resume: Whether to go on with a run.
        overrides: Replace values of the file; see `Recipe.load`.

    Returns:
        The recipe, and the run's folder; None where the recipe's name decides on it.

    Raises:
        InputError: There is no such recipe or run.
    """
    if isinstance(recipe, Recipe):
        return recipe, run_dir
    path = Path(recipe) if recipe is not None else None
    names_recipe = path is not None and (
        path.is_file() or (path.suffix == ".toml" and not path.is_dir()) or is_packaged(path)
    )
    if resume and not names_recipe:
        if path and run_dir:
            raise InputError(f"{path} and `run_dir` both say which run is meant: leave one of them out.")
        folder = path or run_dir
        run = open_run(Path(folder) if folder else None)
        return Recipe.load(run.recipe_file, overrides), run.path
    if path is None:
        raise InputError(
            "fit needs a folder of pictures, or a recipe such as faces; `resume=True` alone resumes the newest run."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a recipe's file, or add `resume=True` to go on with a run.")
    return Recipe.load(path, overrides), run_dir


def find_pictures(recipe: Recipe | str | Path | None, resume: bool) -> Path | None:
    """Find the folder of pictures that `fit` is given in the place of a recipe; None where it is given something else.

    A run's folder is none.
    """
    if resume or recipe is None or isinstance(recipe, Recipe) or not (folder := Path(recipe).expanduser()).is_dir():
        return None
    return None if Run(folder).recipe_file.exists() else folder


def find_run(recipe: Recipe, run_dir: str | Path | None, resume: bool) -> tuple[Run | None, bool]:
    """Find the run that `fit` shall create or go on with.

    Returns:
        The run, or None for a new run with the next free number; and whether to go on with it, which is also so where
        torchrun has restarted the processes that began it.

    Raises:
        InputError: The folder holds a run already, or none to resume, or one that this recipe cannot resume.
    """
    if not resume:
        if begun := _begun_by_this_job(recipe, run_dir):
            return begun, True
        check_new_run(run_dir)
        return Run(Path(run_dir)) if run_dir else None, False
    path = Path(run_dir) if run_dir else next(reversed(runs.runs_of(recipe.name)), None)
    if path is None or not (run := Run(path)).recipe_file.is_file():
        raise InputError(f"{path or f'runs/{recipe.name}-*'} holds no run to resume: start one without `resume=True`.")
    if changed := _changed_keys(recipe, run):
        raise InputError(
            f"The recipe differs from {run.recipe_file} in {', '.join(changed)}: resume with the same values, "
            "or start a new run."
        )
    if (step := _step(run)) > recipe.train.iterations:
        raise InputError(f"{path} is at step {step} already: set train.iterations to more than {step}.")
    return run, True


def check_new_run(run_dir: str | Path | None) -> None:
    """Check that a new run may be put into a folder, if that is given.

    Raises:
        InputError: The folder holds a run already.
    """
    if run_dir and Run(Path(run_dir)).recipe_file.exists():
        raise InputError(f"{run_dir} holds a run already: add `resume=True` to go on with it, or name another folder.")


def _begun_by_this_job(recipe: Recipe, run_dir: str | Path | None) -> Run | None:
    """The newest run that the torchrun job of this process has begun, unless it is done or has another recipe."""
    job = torchrun.job()
    folders = [Path(run_dir)] if run_dir else runs.runs_of(recipe.name)
    run = next((run for run in map(Run, reversed(folders)) if job and run.job == job), None)
    if run is None or not run.recipe_file.is_file():
        return None
    return None if _changed_keys(recipe, run) or _step(run) >= recipe.train.iterations else run


def _changed_keys(recipe: Recipe, run: Run) -> list[str]:
    """The keys in which a recipe differs from a run's, apart from those that may."""
    return [k for k in recipe.changed_keys(Recipe.load(run.recipe_file)) if not k.startswith(MAY_CHANGE)]


def _step(run: Run) -> int:
    """The step of the run's newest checkpoint; 0 without one."""
    newest = newest_checkpoint(run.path)
    return int(newest.name) if newest else 0


def check_fit(recipe: Recipe, run_dir: str | Path | None, resume: bool, device: str | None) -> None:
    """Check what `fit` is given, apart from the data.

    Raises:
        InputError: The device is not known, a tracker is not installed, or this recipe cannot be trained in the run's
            folder.
    """
    if device is not None:
        check_device(device)
    check_trackers(recipe.log.trackers)
    run, _ = find_run(recipe, run_dir, resume)
    if run:
        check_writable(run.path, run.path, "choose another `run_dir`")
    else:
        check_writable(runs.RUNS, f"{runs.RUNS}/", "choose a folder with `run_dir`")


def check_data(recipe: Recipe) -> None:
    """Check that a recipe's data are present and that its pool is large enough for them.

    Raises:
        InputError: Data points are missing, or the pool has fewer samples than there are data points.
    """
    recipe.selection.pool_size(count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout))
