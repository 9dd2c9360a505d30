"""Pictures and charts of a model and its training: what `imletriton show` calls."""

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

from PIL import Image

from imletriton.commands.checks import VIEWS, check_show, check_view
from imletriton.errors import InputError
from imletriton.plotting.grids import save_picture
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.share.model import Unsuitable
from imletriton.share.views import Shown


def picture(source: str | PathLike[str] | Source | None = None, view: str = "samples") -> Image.Image:
    """Draw one picture of a model or how its training went, to look at in a notebook. Nothing is written.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        view: A name in VIEWS.

    Raises:
        InputError: The source cannot be used, or the view is not known or does not suit the model.
    """
    check_view(view)
    [(_, drawn)] = pictures(Shown(open_source(source)), view)
    return drawn


def show(
    source: str | PathLike[str] | Source | None = None,
    view: str | None = None,
    out: str | Path | None = None,
    left_out: Callable[[str, str], object] = lambda view, reason: None,
    between: tuple[Path, Path] | None = None,
) -> dict[str, Path]:
    """Draw a model and how its training went, into PNG files.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        view: A name in VIEWS; by default all that suit the model.
        out: The PNG file of the one view; by default RUN/figures/VIEW.png.
        left_out: Called with each view that is not drawn because it does not suit the model, and the reason.
        between: Two files of latent codes, as `project` writes them, for the view "interpolate": of the same number, or
            one with a single code.

    Returns:
        The PNG files by their views.

    Raises:
        InputError: The source cannot be used, the view is not known or does not suit the model, or a file cannot be
            written.
    """
    return draw(
        Shown(check_show(source, view, Path(out) if out else None, between).now(), between), view, out, left_out
    )


def draw(
    shown: "Shown",
    view: str | None = None,
    out: str | Path | None = None,
    left_out: Callable[[str, str], object] = lambda view, reason: None,
) -> dict[str, Path]:
    """Draw what has been opened already; see `show`."""
    files = dict[str, Path]()
    for name, picture in pictures(shown, view, left_out):
        file = Path(out) if out else shown.source.run.figure(name)
        try:
            save_picture(file, picture)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}): choose another file with `out`.") from error
        files[name] = file
    return files


def pictures(
    shown: "Shown",
    view: str | None = None,
    left_out: Callable[[str, str], object] = lambda view, reason: None,
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the views of a model and their pictures, which `draw` writes; see `show`."""
    with still_there(shown.source.checkpoint):  # all of it now, as training may remove it while the first are drawn
        _ = shown.model, shown.source.has_recipe and shown.state
    for name in [view] if view else VIEWS:
        try:
            picture: Image.Image = getattr(shown, f"draw_{name}")()
        except Unsuitable as reason:
            if view:
                raise InputError(f"{shown.source.name} has no {name} to show: {reason}.") from None
            left_out(name, str(reason))
            continue
        yield name, picture
