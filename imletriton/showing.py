"""Pictures of a run: what `imletriton show` calls."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from imletriton.checkpoint import load_checkpoint
from imletriton.data import load_points
from imletriton.distance import make_distance
from imletriton.errors import InputError
from imletriton.figures import image_grid, titled
from imletriton.fitting import sample_sheet
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.run import Run, write_whole

SNAPSHOTS = 6  # panels of what is shown over time


class Shown:
    """A run with at least one checkpoint, opened to be drawn. Raises InputError where it is none."""

    def __init__(self, run: Run) -> None:
        if not run.recipe_file.is_file() or not run.checkpoints:
            raise InputError(f"{run.path} holds no run with a checkpoint: name a run's folder, such as runs/dog-001.")
        self.run, self.recipe = run, Recipe.load(run.recipe_file)
        self.checkpoint = run.checkpoints[-1]
        _, self.tensors, state = load_checkpoint(self.checkpoint)
        self.step = int(state["step"])

    def title(self, what: str) -> str:
        return f"{self.run.path.name}, step {self.step}: {what}"

    def points(self) -> Tensor:
        data = self.recipe.data
        return load_points(data.source, data.resolution, data.mirror)


def show(run: str | Path, what: str | None = None, out: str | Path | None = None) -> dict[str, Path]:
    """Draw a run; returns the PNG files by what they show.

    what: a name in FIGURES; all that suit the run when left out. out: the PNG file (with `what` only); by default
    RUN/figures/WHAT.png. Raises InputError where the name is unknown or what is asked for does not suit the run.
    """
    if what is not None and what not in FIGURES:
        near = difflib.get_close_matches(what, FIGURES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(FIGURES)}."
        raise InputError(f"{what!r} is neither a run's folder nor something that can be shown: {hint}")
    if out is not None and what is None:
        raise InputError(f"--out is for one picture: name it, such as `imletriton show {run} samples --out {out}`.")
    shown, written = Shown(Run(Path(run))), dict[str, Path]()
    for name in [what] if what else FIGURES:
        picture = FIGURES[name](shown)
        if isinstance(picture, str):
            if what:
                raise InputError(f"{run} has no {what} to show: {picture}.")
            continue
        path = Path(out) if out else shown.run.path / "figures" / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another file with --out.") from error
        written[name] = path
    return written


def _samples(shown: Shown) -> Image.Image | str:
    """Random samples; of points in the plane over time, with the data points and what each selected."""
    if shown.recipe.generator.decoder == "vdvae":
        return titled(image_grid(sample_sheet(Generator.from_pretrained(shown.checkpoint))), shown.title("samples"))
    from imletriton.plots import Snapshot, samples_over_time

    folders = shown.run.checkpoints
    chosen = torch.linspace(0, len(folders) - 1, min(SNAPSHOTS, len(folders))).round().int()
    snapshots = []
    for folder in (folders[k] for k in chosen):
        model, (_, tensors, state) = Generator.from_pretrained(folder), load_checkpoint(folder)
        with torch.no_grad():
            selected = model(tensors["assigned"])
        epsilon = float(tensors.get("strategy.epsilon", torch.zeros(())).nan_to_num(0.0))
        snapshots.append(Snapshot(state["step"], sample_sheet(model), selected, epsilon))
    return samples_over_time(shown.title("samples over time"), shown.points(), snapshots)


def _latents(shown: Shown) -> Image.Image | str:
    """Which latents each data point selected, over the prior."""
    if shown.recipe.generator.latent_dim != 2:
        return f"its latent codes have {shown.recipe.generator.latent_dim} dimensions, the plot has 2"
    from imletriton.plots import latents_over_prior

    latents, owner = (shown.tensors[f"misalignment.{k}"] for k in ("latents", "owner"))
    return latents_over_prior(shown.title("latents by the data point that selected them"), latents, owner)


def _thresholds(shown: Shown) -> Image.Image | str:
    """The thresholds tau_i over the training."""
    log = [json.loads(line) for line in shown.run.log_file.read_text().splitlines()]
    log = [line for line in log if "tau_median" in line]
    if not log:
        return f"the strategy {shown.recipe.selection.strategy!r} has none"
    from imletriton.plots import thresholds_over_time

    return thresholds_over_time(shown.title("thresholds"), log)


def _distances(shown: Shown) -> Image.Image | str:
    """Distances of the data points to selected and to random samples, with theory's."""
    from imletriton.plots import distance_distributions

    points, recipe = shown.points(), shown.recipe
    distance = make_distance(tuple(points.shape[1:]), seed=recipe.train.seed, **recipe.distance.model_dump())
    features = torch.cat([distance.features(part) for part in points.split(64)])
    selected, samples = (shown.tensors[f"misalignment.{k}"] for k in ("distance", "samples"))
    distances = torch.cdist(features, samples[samples.isfinite().all(1)])
    title = shown.title("distances selected and at random")
    return distance_distributions(title, selected, distances, recipe.selection.pool_size(len(points)))


FIGURES: dict[str, Callable[[Shown], Image.Image | str]] = {
    "samples": _samples,
    "latents": _latents,
    "thresholds": _thresholds,
    "distances": _distances,
}
