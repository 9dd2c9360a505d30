"""One HTML file that holds all of a run: `imletriton report`."""

import base64
import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from imletriton.errors import InputError
from imletriton.recipe import recipe_of
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.run import write_whole
from imletriton.runs.schema import METRICS
from imletriton.system.checks import check_device, check_writable

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch

WIDTH, HEIGHT = 1600, 12_000  # pixels, at most, of a picture in the report
PHOTOGRAPHIC = ("samples", "nearest", "interpolate", "backtracking")
CAPTIONS = {
    "samples": "Random samples, as anyone who uses the model gets them.",
    "nearest": "First the closest copies: of 1,000 samples the eight that are nearest to any training picture, each "
    "right of that picture. If even these differ from it, the model makes new pictures. Then visual recall: each "
    "training picture beside the nearest of the samples. Where these are alike, no picture has been forgotten.",
    "backtracking": "Pictures held out from training, each left of its best reconstruction (LPIPS backtracking).",
    "interpolate": "Spherical interpolation between latent codes: four rows between random ones, then, where they are "
    "known, rows between those of pictures.",
    "curves": "Training loss; the distance between each data point and its selected sample, which training minimises, "
    "and between a random sample and its nearest data point, which a user gets; FID where it was measured.",
    "latents": "The latent codes that each data point selected, over the prior distribution.",
    "thresholds": "The thresholds of Adaptive IMLE during training; the darker, the more data points have them.",
    "distances": "How far the data points are from their selected samples and from random samples, and what the theory "
    "predicts.",
}


def report(
    source: str | PathLike[str] | Source | None = None,
    out: str | Path | None = None,
    device: "str | torch.device | None" = None,
) -> Path:
    """Draw a run and write it up as one HTML file that needs no network.

    It holds the metrics that `imletriton eval` has written. Of a model without a run it shows the samples and what else
    can be drawn.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        out: The HTML file; by default RUN/report.html.
        device: Where the model runs: cuda or cpu; by default cuda where there is a CUDA GPU.

    Returns:
        The file.

    Raises:
        InputError: The source cannot be used, or the file cannot be written.
    """
    check_device(device)
    opened = open_source(source)
    path = Path(out) if out else opened.run.report_file
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the HTML file with `out`.")
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise InputError(f"{path} is not named like an HTML file: end `out` in .html.")
    check_writable(path.parent, path, mend := "choose another file with `out`")
    recipe, evaluation = recipe_of(opened), opened.run.evaluation()

    import jinja2  # here, as it and PyTorch load slowly

    from imletriton.commands.show import pictures as views_of
    from imletriton.share.views import Shown

    opened = opened.now()
    with still_there(opened.checkpoint):
        shown = Shown(opened, device=device)
        pictures = dict(views_of(shown))
        backtracking = opened.run.figure("backtracking")
        if evaluation and "backtracking" in evaluation.metrics and backtracking.is_file():
            with Image.open(backtracking) as picture:
                pictures["backtracking"] = picture.convert("RGB")
        figures = [
            {"name": name, "caption": caption, "data": _embedded(pictures[name], name in PHOTOGRAPHIC)}
            for name, caption in CAPTIONS.items()
            if name in pictures
        ]
        log = opened.run.log()
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html")
        shown_recipe = recipe.for_others() if recipe else None
        evaluation = evaluation.for_others() if evaluation else None
        html = page.render(
            run=opened.name,
            recipe=shown_recipe,
            toml=shown_recipe.to_toml() if shown_recipe else None,
            step=opened.step,
            points=len(shown.points) if recipe else None,
            parameters=sum(p.numel() for p in shown.model.parameters()),
            environment=shown.state.get("environment", {}) if recipe else {},
            loss=next((record.loss for record in reversed(log) if record.loss is not None), None),
            best=min(((record.fid, record.step) for record in log if record.fid is not None), default=None),
            evaluation=evaluation,
            titles=METRICS,
            figures=figures,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write_text(html, "utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {mend}.") from error
    return path


def _embedded(picture: Image.Image, photographic: bool) -> str:
    """A picture as a data URL, no larger than the page shows it: JPEG if it is photographic, else PNG."""
    buffer, kind = io.BytesIO(), "jpeg" if photographic else "png"
    picture.thumbnail((WIDTH, HEIGHT))
    picture.convert("RGB").save(buffer, kind.upper(), quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
