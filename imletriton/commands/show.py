"""Pictures of a run: what `imletriton show` calls."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from imletriton.build import make_distance
from imletriton.commands.checks import check_show, open_run
from imletriton.commands.fit import sample_sheet
from imletriton.data import check_points, load_points
from imletriton.distance import Distance, as_float
from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes
from imletriton.plotting.grids import image_grid, image_pairs, save_picture, titled
from imletriton.runs.checkpoint import load_checkpoint
from imletriton.runs.schema import LogRecord
from imletriton.system.device import choose_device

SNAPSHOTS = 6  # panels of what is shown over time
RECALLED = 1000  # samples among which each picture finds its nearest, as in RS-IMLE
CANDIDATES = 8  # of them, among which the distance itself decides
STAGES = 9  # pictures in a row from one latent code to another


class Shown:
    """A run with at least one checkpoint, opened to be drawn. Raises InputError where it is none."""

    def __init__(self, path: Path) -> None:
        self.run, self.recipe = open_run(path)
        self.checkpoint = self.run.checkpoints[-1]
        _, self.tensors, self.state = load_checkpoint(self.checkpoint)
        self.step = int(self.state["step"])
        self.device = choose_device(None)

    def title(self, what: str) -> str:
        return f"{self.run.path.resolve().name}, step {self.step}: {what}"

    @property
    def pictures(self) -> bool:
        """Whether it generates pictures, rather than points in the plane."""
        return self.recipe.generator.decoder == "vdvae"

    @cached_property
    def points(self) -> Tensor:
        points = load_points(**self.recipe.data.model_dump())
        check_points(points, self.state["data"], str(self.run.path))
        return points

    @cached_property
    def model(self) -> Generator:
        return Generator.from_pretrained(self.checkpoint).to(self.device)

    @cached_property
    def distance(self) -> Distance:
        recipe = self.recipe
        return make_distance(recipe.distance, tuple(self.points.shape[1:]), recipe.train.seed).to(self.device)

    @cached_property
    def features(self) -> Tensor:
        """The data points', to search among."""
        return torch.cat([self.distance.features(part.to(self.device)) for part in self.points.split(64)])

    @cached_property
    def log(self) -> list[LogRecord]:
        return self.run.log()


def show(run: str | Path | Shown, what: str | None = None, out: str | Path | None = None) -> dict[str, Path]:
    """Draw a run; returns the PNG files by what they show.

    what: a name in FIGURES; all that suit the run when left out. out: the PNG file (with `what` only); by default
    RUN/figures/WHAT.png. Raises InputError where the name is unknown or what is asked for does not suit the run.
    """
    where = check_show(run.run.path if isinstance(run, Shown) else Path(run), what, Path(out) if out else None)
    shown, written = run if isinstance(run, Shown) else Shown(where), dict[str, Path]()
    for name in [what] if what else FIGURES:
        picture = FIGURES[name](shown)
        if isinstance(picture, str):
            if what:
                raise InputError(f"{run} has no {what} to show: {picture}.")
            continue
        path = Path(out) if out else shown.run.path / "figures" / f"{name}.png"
        try:
            save_picture(path, picture)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another file with --out.") from error
        written[name] = path
    return written


def _samples(shown: Shown) -> Image.Image | str:
    """Random samples; of points in the plane over time, with the data points and what each selected."""
    if shown.pictures:
        return titled(image_grid(sample_sheet(shown.model)), shown.title("random samples"))
    from imletriton.plotting.charts import Snapshot, samples_over_time

    folders = shown.run.checkpoints
    chosen = torch.linspace(0, len(folders) - 1, min(SNAPSHOTS, len(folders))).round().int()
    snapshots = []
    for folder in (folders[k] for k in chosen):
        model, (_, tensors, state) = Generator.from_pretrained(folder), load_checkpoint(folder)
        with torch.no_grad():
            selected = model(tensors["assigned"])
        epsilon = float(tensors.get("strategy.epsilon", torch.zeros(())).nan_to_num(0.0))
        snapshots.append(Snapshot(state["step"], sample_sheet(model), selected, epsilon))
    return samples_over_time(shown.title("samples over time"), shown.points, snapshots)


@torch.no_grad()
def _nearest(shown: Shown) -> Image.Image | str:
    """Visual recall: each picture beside the nearest of RECALLED samples, as in RS-IMLE's figure 6.

    Search features propose CANDIDATES for each, and the run's distance decides.
    """
    if not shown.pictures:
        return "it generates points, not pictures"
    n = len(shown.points) // (2 if shown.recipe.data.mirror else 1)  # the others are mirror images
    near, index = torch.full((n, 1), torch.inf, device=shown.device), torch.zeros(n, 1, dtype=torch.long)
    kept: list[Tensor] = []
    for batch in shown.model.sample_batches(RECALLED):
        found = torch.cdist(shown.features[:n], shown.distance.features(batch))
        numbers = torch.arange(len(batch)).expand(n, -1) + sum(map(len, kept))
        near, chosen = torch.cat([near, found], 1).topk(min(CANDIDATES, near.shape[1] + len(batch)), largest=False)
        index = torch.cat([index, numbers], 1).gather(1, chosen.cpu())
        kept.append(batch.cpu())
    samples, best = torch.cat(kept), []
    for point, candidates in zip(shown.points[:n], index, strict=True):
        among = samples[candidates].to(shown.device)
        distances = shown.distance.loss(as_float(among), point.to(shown.device).expand_as(among))
        best.append(candidates[distances.argmin().cpu()])
    title = shown.title(f"pictures, and the nearest of {RECALLED} samples")
    return titled(image_pairs(shown.points[:n], samples[torch.stack(best)]), title)


@torch.no_grad()
def _interpolate(shown: Shown) -> Image.Image | str:
    """From one latent code to another: four rows between random ones, four between those of data points."""
    if not shown.pictures:
        return "it generates points, not pictures"
    model = shown.model
    random = latent_codes(0, 8, model.latent_dim, seed=0)
    chosen = torch.linspace(0, len(shown.points) - 1, min(8, len(shown.points) // 2 * 2)).long()
    latents = torch.cat([random, shown.tensors["assigned"][chosen]]).to(shown.device)
    pairs = rearrange(latents, "(row pair) dim -> row pair dim", pair=2)
    rows = [model.decoder.at_rest(model(slerp(a, b, STAGES))) for a, b in pairs]
    title = shown.title("between random latents (4 rows), and between those of pictures")
    return titled(image_grid(torch.cat(rows), STAGES), title)


def slerp(a: Tensor, b: Tensor, stages: int) -> Tensor:
    """Spherical interpolation from latent code a to b [d] (Shoemake 1985; as White 2016 has it): [stages, d]."""
    angle = torch.acos((F.normalize(a, dim=0) @ F.normalize(b, dim=0)).clamp(-1, 1))
    t = torch.linspace(0, 1, stages, device=a.device)[:, None]
    if angle.sin() < 1e-4:  # one direction
        return a + t * (b - a)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def _curves(shown: Shown) -> Image.Image | str:
    """Loss and distances over the training, and the FID where it was measured."""
    if not any(record.loss for record in shown.log):
        return "its log holds no loss"
    from imletriton.plotting.charts import curves

    return curves(shown.title("training"), shown.log)


def _latents(shown: Shown) -> Image.Image | str:
    """Which latents each data point selected, over the prior."""
    if shown.recipe.generator.latent_dim != 2:
        return f"its latent codes have {shown.recipe.generator.latent_dim} dimensions, the plot has 2"
    from imletriton.plotting.charts import latents_over_prior

    latents, owner = (shown.tensors[f"misalignment.{k}"] for k in ("latents", "owner"))
    return latents_over_prior(shown.title("latents by the data point that selected them"), latents, owner)


def _thresholds(shown: Shown) -> Image.Image | str:
    """The thresholds tau_i over the training."""
    log = [record for record in shown.log if hasattr(record, "tau_median")]
    if not log:
        return f"the strategy {shown.recipe.selection.strategy!r} has none"
    from imletriton.plotting.charts import thresholds_over_time

    return thresholds_over_time(shown.title("thresholds"), log)


def _distances(shown: Shown) -> Image.Image | str:
    """Distances of the data points to selected and to random samples, with theory's."""
    from imletriton.plotting.charts import distance_distributions

    selected, samples = (shown.tensors[f"misalignment.{k}"] for k in ("distance", "samples"))
    distances = torch.cdist(shown.features.cpu(), samples[samples.isfinite().all(1)])
    title = shown.title("distances selected and at random")
    pool_size = shown.recipe.selection.pool_size(len(shown.points))
    return distance_distributions(title, selected, distances, pool_size)


FIGURES: dict[str, Callable[[Shown], Image.Image | str]] = {
    "samples": _samples,
    "nearest": _nearest,
    "interpolate": _interpolate,
    "curves": _curves,
    "latents": _latents,
    "thresholds": _thresholds,
    "distances": _distances,
}
