"""One HTML file that holds all of a run: what `imletriton report` calls."""

import base64
import json
from pathlib import Path

from imletriton.errors import InputError
from imletriton.run import Run, write_whole
from imletriton.showing import Shown, show

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
    import jinja2

    shown = Shown(Run(source))
    pictures = show(source)
    backtracking = source / "figures" / "backtracking.png"
    if backtracking.is_file():
        pictures["backtracking"] = backtracking
    figures = [
        {"name": name, "caption": caption, "data": base64.b64encode(pictures[name].read_bytes()).decode()}
        for name, caption in CAPTIONS.items()
        if name in pictures
    ]
    evaluation = source / "eval.json"
    fids = [(line["fid"], line["step"]) for line in shown.log if "fid" in line]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html")
    html = page.render(
        run=source.resolve().name,
        recipe=shown.recipe,
        toml=shown.run.recipe_file.read_text(),
        step=shown.step,
        points=len(shown.points),
        parameters=sum(p.numel() for p in shown.model.parameters()),
        environment=shown.state.get("environment", {}),
        last=shown.log[-1] if shown.log else {},
        best=min(fids, default=None),
        evaluation=json.loads(evaluation.read_text()) if evaluation.is_file() else None,
        figures=figures,
    )
    path = out or source / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write_text(html))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another file with --out.") from error
    return path
