"""Pictures and charts of a model and its training: `imletriton show`."""

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from imletriton.errors import InputError, suggestion
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.sections import MAX_SAMPLES
from imletriton.share.latents import check_latents
from imletriton.system.checks import MAX_SEED, check_device, check_range, check_writable

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch
    from PIL.Image import Image

    from imletriton.share.views import Shown

VIEWS = ("samples", "nearest", "interpolate", "curves", "latents", "thresholds", "distances")  # methods of `Shown`
TAKING_N = ("samples", "nearest")


def picture(source: str | PathLike[str] | Source | None = None, view: str = "samples") -> "Image":
    """Draw one picture of a model or of how its training went, to look at in a notebook. Nothing is written.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        view: A name in VIEWS.

    Raises:
        InputError: The source cannot be used, or the view is not known or does not suit the model.
    """
    opened = _check(source, view, None, None, None, 0)

    from imletriton.share.views import Shown  # here, as it imports PyTorch

    [(_, drawn)] = pictures(Shown(opened), view)
    return drawn


def show(
    source: str | PathLike[str] | Source | None = None,
    view: str | None = None,
    out: str | Path | None = None,
    left_out: Callable[[str, str], object] = lambda view, reason: None,
    between: tuple[Path, Path] | None = None,
    n: int | None = None,
    seed: int = 0,
    device: "str | torch.device | None" = None,
) -> dict[str, Path]:
    """Draw a model and how its training went, into PNG files.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        view: A name in VIEWS; by default all that suit the model.
        out: The PNG file of the one view; by default RUN/figures/VIEW.png.
        left_out: Called with each view that is not drawn because it does not suit the model, and the reason.
        between: Two files of latent codes, as `project` writes them, for the view "interpolate": of the same number, or
            one with a single code.
        n: For the view "samples", how many are drawn, by default 64 or fewer large ones; for "nearest", how many are
            compared with the training pictures, by default 1000.
        seed: The random seed of the samples and interpolations.
        device: Where the model runs: cuda or cpu; by default cuda where there is a CUDA GPU.

    Returns:
        The PNG files by their views.

    Raises:
        InputError: The source cannot be used, the view is not known or does not suit the model, options do not go
            together, or a file cannot be written.
    """
    check_device(device)
    out = Path(out) if out else None
    opened = _check(source, view, out, between, n, seed)
    first = out or opened.run.figure(view or VIEWS[0])
    check_writable(first.parent, first, mend := "choose another file with `out`")

    from imletriton.plotting.grids import save_picture  # here, as these import PyTorch
    from imletriton.share.views import Shown

    opened, files = opened.now(), dict[str, Path]()
    for name, drawn in pictures(Shown(opened, between, n, seed, device), view, left_out):
        file = out or opened.run.figure(name)
        try:
            save_picture(file, drawn)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}): {mend}.") from error
        files[name] = file
    return files


def _check(
    source: str | PathLike[str] | Source | None,
    view: str | None,
    out: Path | None,
    between: tuple[Path, Path] | None,
    n: int | None,
    seed: int,
) -> Source:
    """Check the arguments of `show`; the opened source."""
    if view is not None and view not in VIEWS:
        raise InputError(f"{view!r} cannot be shown: {suggestion(view, VIEWS)}")
    if out is not None and view is None:
        raise InputError("`out` is for one picture: name one of the views, such as samples.")
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(f"{out} is not named like a PNG file: end `out` in .png.")
    if n is not None:
        if view not in TAKING_N:
            raise InputError(f"`n` is for the views {' and '.join(TAKING_N)}: name one of them, or leave `n` out.")
        check_range("n", n, 1, MAX_SAMPLES)
    check_range("seed", seed, 0, MAX_SEED)
    if between is not None:
        if view != "interpolate":
            raise InputError("`between` is for interpolations: name the view interpolate.")
        first, second = (check_latents(file) for file in between)
        if first != second and 1 not in (first, second):
            raise InputError(
                f"{between[0]} holds {first} latent codes and {between[1]} {second}: `between` needs files that hold "
                "equally many, or one that holds a single code."
            )
    return open_source(source)


def pictures(
    shown: "Shown",
    view: str | None = None,
    left_out: Callable[[str, str], object] = lambda view, reason: None,
) -> "Iterator[tuple[str, Image]]":
    """Yield the views of a model with their pictures; see `show`."""
    from imletriton.share.model import Unsuitable

    with still_there(shown.source.checkpoint):  # read at once, as training may remove it while the first are drawn
        _ = shown.model, shown.source.has_recipe and shown.state
    for name in [view] if view else VIEWS:
        try:
            drawn: Image = getattr(shown, f"draw_{name}")()
        except Unsuitable as reason:
            if view:
                raise InputError(f"{shown.source.name} has no {name} to show: {reason}.") from None
            left_out(name, str(reason))
            continue
        yield name, drawn
