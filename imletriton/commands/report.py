"""One HTML file that holds all of a run: what `imletriton report` calls."""

import base64
import io
from pathlib import Path

from PIL import Image

from imletriton.commands.checks import check_place, open_run
from imletriton.errors import InputError
from imletriton.runs.run import write_whole
from imletriton.runs.schema import METRICS

WIDTH, HEIGHT = 1600, 12_000  # pixels, at most, of a picture in the report
PHOTOGRAPHIC = ("samples", "nearest", "interpolate", "backtracking")
CAPTIONS = {
    "samples": "Random samples, as anyone who uses the model gets them.",
    "nearest": "Visual recall: each training picture, left, beside the nearest of 1,000 samples.",
    "backtracking": "Pictures held out from training, left, beside their best reconstructions (LPIPS backtracking).",
    "interpolate": "Spherical interpolation: four rows between random latent codes, then between those of pictures.",
    "curves": "Training loss; the distance that training sees and the one that a user gets; FID where measured.",
    "latents": "Which latent codes each data point selected, over the prior.",
    "thresholds": "The thresholds of Adaptive IMLE over the training; darker where more of them lie.",
    "distances": "Distances of the data to selected and to random samples, with theory's.",
}


def report(source: Path, out: Path | None = None) -> Path:
    """Draw a run and write it up as one HTML file that needs no network; by default RUN/report.html.

    Figures of `imletriton eval` are in it where eval.json is in the run. Raises InputError where source is no run with
    a checkpoint or the file cannot be written.
    """
    path = out or source / "report.html"
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the HTML file with --out.")
    mend = "choose another file with --out"
    check_place(path.parent, path, mend)
    open_run(source)

    import jinja2  # here, as it and PyTorch load slowly

    from imletriton.commands.show import Shown, show

    shown = Shown(source)
    pictures = show(shown)
    evaluation = shown.run.evaluation()
    backtracking = source / "figures" / "backtracking.png"
    if evaluation and "backtracking" in evaluation.metrics and backtracking.is_file():
        pictures["backtracking"] = backtracking
    figures = [
        {"name": name, "caption": caption, "data": _embedded(pictures[name], name in PHOTOGRAPHIC)}
        for name, caption in CAPTIONS.items()
        if name in pictures
    ]
    fids = [(record.fid, record.step) for record in shown.log if record.fid is not None]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html")
    html = page.render(
        run=source.resolve().name,
        recipe=shown.recipe,
        toml=shown.run.recipe_file.read_text("utf-8"),
        step=shown.step,
        points=len(shown.points),
        parameters=sum(p.numel() for p in shown.model.parameters()),
        environment=shown.state.get("environment", {}),
        loss=next((record.loss for record in reversed(shown.log) if record.loss is not None), None),
        best=min(fids, default=None),
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


def _embedded(file: Path, photographic: bool) -> str:
    """A picture as a data URL, no larger than a page shows: JPEG where it is made of pictures, else PNG."""
    buffer, kind = io.BytesIO(), "jpeg" if photographic else "png"
    with Image.open(file) as picture:
        picture.thumbnail((WIDTH, HEIGHT))
        picture.convert("RGB").save(buffer, kind.upper(), quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
