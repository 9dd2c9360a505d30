"""`imletriton fit`: check what is asked for, without PyTorch, which takes seconds to import; then train."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imletriton.data import count_points
from imletriton.data.files import list_training_images
from imletriton.errors import InputError, explain_out_of_memory
from imletriton.generator.blocks import MAX_RESOLUTION, auto_blocks
from imletriton.recipe import Recipe, is_packaged
from imletriton.runs import run as runs
from imletriton.runs.opening import open_run
from imletriton.runs.run import Run, newest_checkpoint
from imletriton.runs.trackers import check_trackers
from imletriton.system import torchrun
from imletriton.system.checks import check_device, check_writable
from imletriton.system.registry import shown
from imletriton.training.memory import check_memory_early
from imletriton.training.reporter import Reporter

if TYPE_CHECKING:
    import torch

    from imletriton.training.planning import Plan

MAX_MINUTES = 366 * 24 * 60  # that a training may take
# Keys of the recipe that may change when a run is resumed. Pictures may have moved; their content is checked.
MAY_CHANGE = ("train.iterations", "train.patience", "train.calibrate", "log.", "data.source")


@explain_out_of_memory
def fit(
    recipe: Recipe | str | Path | None = None,
    run_dir: str | Path | None = None,
    device: "str | torch.device | None" = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    minutes: float | None = None,
    resolution: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    fetch: Callable[[str], object] = lambda source: None,
    spent: float = 0.0,
) -> Run:
    """Train a generator as a recipe says.

    Under torchrun, the processes train one run together; the first one writes and reports. Processes that torchrun has
    restarted continue the run that they had begun.

    Args:
        recipe: What to train, on which data points, and how; or its file, or the name of a recipe that comes with
            imletriton; or a folder of pictures, for which `plan` makes a recipe. With `resume`, a run's folder will do,
            or nothing for the run in `run_dir`, by default the newest: its own recipe is taken.
        run_dir: The run's folder; by default runs/NAME-001 and so on, and with `resume` the newest run of that name.
        device: cuda or cpu; by default cuda where there is a CUDA GPU.
        resume: Continue from the run's newest checkpoint.
        reporter: Is told what happens. By default, `imletriton.fit` shows it.
        minutes: End after so many minutes from this call, its last checkpoint included, instead of after
            `train.iterations` steps. The run's recipe then has the number of steps that were done. A folder of pictures
            is trained on for 30 minutes by default, and for 120 on a GPU.
        resolution: For a folder of pictures: the side of the samples in pixels; by default as time and pictures allow.
        overrides: Replace values of the recipe, by section and key; see `Recipe.load`.
        fetch: Called with the recipe's data source once everything else has been checked, to fetch missing pictures.
        spent: Seconds of `minutes` that have passed already.

    Returns:
        The run, which holds the trained generator.

    Raises:
        InputError: Something is wrong that the user can solve; nothing was written.
        Fault: Training cannot go on, for example because memory ran out.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped it; the run is saved and can be resumed.
    """
    began = time.perf_counter() - spent
    reporter = reporter if reporter and torchrun.is_first() else Reporter()
    note = reporter.note
    ready, run = None, None
    if folder := find_pictures(recipe, resume):
        _check_new_run(run_dir)
        planned = plan(
            folder,
            minutes,
            resolution,
            device,
            overrides,
            note,
            reporter.pictures,
            time.perf_counter() - began,
        )
        note("\n".join(f"  {line}" for line in planned.lines))
        recipe, minutes, ready = planned.recipe, planned.minutes, planned.ready
    elif resolution is not None:
        raise InputError("`resolution` is for a folder of pictures; a recipe has its own: set data.resolution.")
    else:
        _check_time_and_device(minutes, device)
        named = recipe or run_dir
        recipe, run_dir = _find_recipe(recipe, run_dir, resume, overrides or {})
        if resume and not named:
            note(f"The newest run is {run_dir}.")
    check_trackers(recipe.log.trackers)
    if torchrun.is_first():  # the other processes wait for it in `train`
        run, resume = _find_run(recipe, run_dir, resume)
        if run:
            check_writable(run.path, run.path, "choose another `run_dir`")
        else:
            check_writable(runs.RUNS, f"{runs.RUNS}/", "choose a folder with `run_dir`")
        if not ready:
            fetch(recipe.data.source)
            recipe.selection.pool_size(count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout))
            check_memory_early(recipe, None if device is None else str(device))
            note(f"Training {recipe.name} on {recipe.data.source}: loading PyTorch.")

    from imletriton.training.launch import train
    from imletriton.training.pace import Deadline

    deadline = None if minutes is None else Deadline(60 * minutes - (time.perf_counter() - began))
    return train(recipe, run, resume, device, reporter, deadline, ready)


def plan(
    folder: str | Path,
    minutes: float | None = None,
    resolution: int | None = None,
    device: "str | torch.device | None" = None,
    overrides: Mapping[str, Any] | None = None,
    note: Callable[[str], object] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    spent: float = 0.0,
) -> "Plan":
    """Plan a training on pictures of one's own, for this machine: look at the pictures, and measure a few steps.

    Args:
        folder: The folder of pictures.
        minutes: The time until the end of the training, from this call; by default 30 on a CPU, 120 on a CUDA GPU.
        resolution: The side of the samples in pixels; by default as time and pictures allow.
        device: Where to train; see `fit`.
        overrides: Values of the recipe that are given, by section and key.
        note: Called with sentences on what happens.
        progress: Called with the number of pictures decoded so far, and their total.
        spent: The seconds of that time that have passed already.

    Returns:
        The plan: its recipe, minutes, and five lines for people. `fit(plan.recipe, minutes=plan.minutes)` carries it
        out; `fit(folder)` does both.

    Raises:
        InputError: The pictures cannot be used, or the time or the memory does not suffice.
    """
    began, folder, overrides = time.perf_counter() - spent, Path(folder), overrides or {}
    if torchrun.processes() > 1:
        raise InputError(
            f"{folder} is a folder: several processes need a recipe, such as recipes/photos256.toml with "
            "`data.source=FOLDER`."
        )
    list_training_images(folder)
    _check_time_and_device(minutes, device)
    if "train.iterations" in overrides or "data.source" in overrides:
        raise InputError(
            "The steps follow from `minutes`, and the pictures are those of the folder: leave out "
            "train.iterations and data.source, or name a recipe instead of the folder."
        )
    side = overrides.get("data.resolution", resolution)
    if side is not None:
        if type(side) is not int or not 4 <= side <= MAX_RESOLUTION:
            raise InputError(f"`resolution` must be from 4 to {MAX_RESOLUTION} pixels, not {shown(side)}.")
        try:
            auto_blocks(side, 1)
        except ValueError as error:
            raise InputError(f"`resolution`: {error}.") from error
    note(f"Planning a training on {folder}: loading PyTorch.")

    from imletriton.system.device import choose_device
    from imletriton.training.planning import make_plan

    chosen = choose_device(device)
    return make_plan(folder, minutes, side, chosen, overrides, note, progress, time.perf_counter() - began)


def _check_time_and_device(minutes: float | None, device: "str | torch.device | None") -> None:
    """Raise InputError unless the time for a training is more than 0 and at most a year, and the device is known."""
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise InputError(f"`minutes` must be more than 0 and at most {MAX_MINUTES}, not {shown(minutes)}.")
    check_device(device)


def find_pictures(recipe: Recipe | str | Path | None, resume: bool) -> Path | None:
    """Find the folder of pictures that `fit` is given in the place of a recipe; None where it is given something else.

    A run's folder is not one.
    """
    if resume or recipe is None or isinstance(recipe, Recipe) or not (folder := Path(recipe).expanduser()).is_dir():
        return None
    return None if Run(folder).recipe_file.exists() else folder


def _find_recipe(
    recipe: Recipe | str | Path | None, run_dir: str | Path | None, resume: bool, overrides: Mapping[str, Any]
) -> tuple[Recipe, str | Path | None]:
    """Find the recipe that `fit` is asked for. A run that is resumed by its folder has its own.

    Returns:
        The recipe, and the run's folder; None where the recipe's name decides on it.

    Raises:
        InputError: There is no such recipe or run.
    """
    if isinstance(recipe, Recipe):
        return Recipe.of(recipe.model_dump(), recipe.name, overrides) if overrides else recipe, run_dir
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
        raise InputError(f"{path} is a folder: name a recipe's file, or add `resume=True` to continue a run.")
    return Recipe.load(path, overrides), run_dir


def _find_run(recipe: Recipe, run_dir: str | Path | None, resume: bool) -> tuple[Run | None, bool]:
    """Find the run that `fit` shall create or continue.

    Returns:
        The run, or None for a new run with the next free number; and whether to continue it, which is also so where
        torchrun has restarted the processes that began it.

    Raises:
        InputError: The folder holds a run already, or none to resume, or one that this recipe cannot resume.
    """
    if not resume:
        if begun := _begun_by_this_job(recipe, run_dir):
            return begun, True
        _check_new_run(run_dir)
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


def _check_new_run(run_dir: str | Path | None) -> None:
    """Raise InputError where the folder for a new run, if one is given, holds a run already."""
    if run_dir and Run(Path(run_dir)).recipe_file.exists():
        raise InputError(f"{run_dir} holds a run already: add `resume=True` to continue it, or name another folder.")


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
