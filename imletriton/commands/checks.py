"""Checks of what the commands are given, before PyTorch is imported, which takes seconds.

The command line calls them first. The commands call them again, for those who use them from Python.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from imletriton.data import count_points
from imletriton.data.files import list_images
from imletriton.errors import InputError, suggestion
from imletriton.recipe import recipe_of
from imletriton.runs import run as runs
from imletriton.runs.opening import Source, open_source
from imletriton.runs.schema import METRICS
from imletriton.sections import MAX_SAMPLES
from imletriton.share.latents import check_latents
from imletriton.share.video import VIDEO
from imletriton.system.checks import check_device, check_writable
from imletriton.system.registry import shown
from imletriton.training.memory import check_fid_memory

VIEWS = ("samples", "nearest", "interpolate", "curves", "latents", "thresholds", "distances")  # methods of `Shown`


def check_generate(n: int, seed: int, device: str | None) -> None:
    """Check the numbers and the device that `generate` is given.

    Raises:
        InputError: n or seed is out of range, or the device is not known.
    """
    if not 1 <= n <= MAX_SAMPLES:
        raise InputError(f"`n` must be from 1 to {MAX_SAMPLES}, not {shown(n)}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"`seed` must be from 0 to 2^32 - 1, not {shown(seed)}.")
    if device is not None:
        check_device(device)


def list_samples(folder: Path) -> list[Path]:
    """List the pictures in a folder of samples.

    Raises:
        InputError: It is no folder, or holds fewer than two pictures.
    """
    if not folder.is_dir():
        raise InputError(f"`samples` {folder} is no folder: name a folder of pictures.")
    files = list_images(folder)
    if len(files) < 2:
        raise InputError(f"`samples` {folder} holds one picture only: give at least two.")
    return files


def check_evaluate(
    source: str | PathLike[str] | Source | None,
    samples: Path | None,
    data: str | None,
    metrics: Sequence[str] | None,
    n: int,
) -> tuple[Source | None, str]:
    """Check what `evaluate` is given, whose arguments these are.

    Returns:
        The opened source, None where folders alone are compared; and the source of the pictures to compare with.

    Raises:
        InputError: A metric is not known, or a source is missing or does not suit the metrics.
    """
    for name in metrics or ():
        if name not in METRICS:
            raise InputError(f"`metrics`: {name!r} is not known: {suggestion(name.lower(), METRICS)}")
    if not 2 <= n <= MAX_SAMPLES:
        raise InputError(f"`n` must be from 2 to {MAX_SAMPLES}, not {shown(n)}.")
    if not samples and not {"fid", "kid"}.isdisjoint(metrics or METRICS):
        check_fid_memory(n)
    if source is None and samples and data is None:
        raise InputError("eval needs a run, or `samples=DIR` with `data=SOURCE` to compare them with.")
    opened = None if source is None and samples else open_source(source)
    recipe = recipe_of(opened) if opened else None
    pictures = data or (recipe.data.source if recipe else None)
    if pictures is None:
        assert opened  # otherwise `data` is given
        raise InputError(
            f"{opened.name} comes without the recipe and the state of its training, so nothing says which "
            "pictures that was on: name the pictures to compare with by `data=SOURCE`."
        )
    if samples:
        list_samples(samples.expanduser())
    if metrics and "backtracking" in metrics and (samples or not recipe or not recipe.data.holdout):
        raise InputError("backtracking needs a run that was trained with data.holdout, such as 0.1.")
    if pictures == "toy2d":
        raise InputError(f"{pictures} holds points, not pictures: `imletriton show` draws them.")
    count_points(pictures)
    return opened, pictures


def check_show(
    source: str | PathLike[str] | Source | None,
    view: str | None,
    out: Path | None,
    between: tuple[Path, Path] | None = None,
) -> Source:
    """Check what `show` is given, whose arguments these are.

    Returns:
        The opened source.

    Raises:
        InputError: The source or the view is not known, or the file cannot be written.
    """
    check_view(view)
    if out is not None and view is None:
        raise InputError("`out` is for one picture: say which, by `view`.")
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(
            f"{out} is not named like a PNG file, which is what is written: end the name of `out` in .png."
        )
    if between is not None:
        if view != "interpolate":
            raise InputError("`between` is for the view interpolate: name that.")
        first, second = (check_latents(file) for file in between)
        if first != second and 1 not in (first, second):
            raise InputError(
                f"{between[0]} holds {first} latent codes and {between[1]} {second}: `between` goes from each one to "
                "its counterpart, so they must be as many, or one alone."
            )
    opened = open_source(source)
    file = out or opened.run.figure(view or "samples")
    check_writable(file.parent, file, "choose another file with `out`")
    return opened


def check_view(view: str | None) -> None:
    """Check the name of what is to be drawn.

    Raises:
        InputError: It is not known.
    """
    if view is not None and view not in VIEWS:
        hint = f"did you mean {runs.RUNS / view}?" if (runs.RUNS / view).is_dir() else suggestion(view, (*VIEWS, VIDEO))
        raise InputError(f"{view!r} is neither a run's folder nor something that can be shown: {hint}")
