"""What can be drawn of a model and of its training: one method for each view."""

from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from imletriton.distance import as_float
from imletriton.errors import InputError, notice
from imletriton.generator import Generator, latent_codes, slerp
from imletriton.generator.model import SAMPLE_BATCH
from imletriton.plotting.grids import image_grid, image_pairs, sample_sheet, stacked, titled
from imletriton.runs.checkpoint import load_checkpoint
from imletriton.runs.opening import Source
from imletriton.runs.reading import Damaged
from imletriton.runs.schema import LogRecord
from imletriton.search import nearest
from imletriton.share.latents import load_latents
from imletriton.share.model import Loaded, Unsuitable

SNAPSHOTS = 6  # panels of what is shown over time
RECALLED = 1000  # samples among which each picture finds its nearest, as in RS-IMLE
CANDIDATES = 8  # of them, among which the distance itself decides
COPIES = 8  # samples shown that are the nearest to training pictures
ORIGINALS = 4  # training pictures that each of these may be a copy of
STAGES = 9  # pictures in a row from one latent code to another


class Shown(Loaded):
    """A model, with a method for each view.

    A method raises Unsuitable where the model, its recipe or its log lacks what the view shows.

    Args:
        source: The model.
        between: Two files of latent codes for the view "interpolate"; see `show`.
        n: How many samples are drawn, or compared with the data points; by default as many as the view needs.
        seed: The random seed of samples and interpolations.
        device: Where the model runs; None takes cuda where there is a CUDA GPU.
    """

    def __init__(
        self,
        source: Source,
        between: tuple[Path, Path] | None = None,
        n: int | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(source, device)
        self.between, self.n, self.seed = between, n, seed

    def title(self, text: str) -> str:
        return f"{self.source.title}: {text}"

    @cached_property
    def features(self) -> Tensor:
        """The search features of the data points, float32 [n, d]."""
        return self.features_of(self.points, self.distance)

    @cached_property
    def log(self) -> list[LogRecord]:
        if not (log := self.source.run.log()):
            raise Unsuitable("it comes without the log of its training")
        return log

    def draw_samples(self) -> Image.Image:
        """Random samples; of points in the plane over time, with the data points and what each selected."""
        if self.generates_pictures:
            return titled(image_grid(sample_sheet(self.model, self.n, self.seed)), self.title("random samples"))
        from imletriton.plotting.charts import Snapshot, samples_over_points, samples_over_time

        if not self.source.has_recipe:
            return samples_over_points(sample_sheet(self.model, self.n, self.seed), None)
        folders = [folder for folder in self.source.run.checkpoints if int(folder.name) <= int(self.state["step"])]
        chosen = torch.linspace(0, len(folders) - 1, min(SNAPSHOTS, len(folders))).round().int()
        snapshots = []
        for folder in (folders[k] for k in chosen):
            try:
                model, (_, tensors, state) = Generator.from_pretrained(folder), load_checkpoint(folder)
            except InputError as error:
                if folder.exists():  # else training has removed it meanwhile
                    if not isinstance(error, Damaged):
                        raise
                    notice(f"{error.what} and is left out.")
                continue
            with torch.no_grad():
                selected = model(tensors["assigned"])
            epsilon = float(tensors.get("strategy.epsilon", torch.zeros(())).nan_to_num(0.0))
            samples = sample_sheet(model, self.n, self.seed)
            snapshots.append(Snapshot(state["step"], samples, selected, epsilon))
        return samples_over_time(self.title("samples over time"), self.points, snapshots)

    @torch.no_grad()
    def draw_nearest(self) -> Image.Image:
        """The closest copies among n samples, and visual recall."""
        if not self.generates_pictures:
            raise Unsuitable("it generates points, not pictures")
        samples = torch.cat([batch.cpu() for batch in self.model.sample_batches(self.n or RECALLED, self.seed)])
        features = self.features_of(samples, self.distance)
        return stacked([self._copies(samples, features), self._recall(samples, features)])

    def _copies(self, samples: Tensor, features: Tensor) -> Image.Image:
        """The samples that are nearest to any training picture, each beside that picture, nearest first.

        Search features propose samples and ORIGINALS for each of them, and the distance decides.
        """
        distance, label = self.perceptual
        ours, theirs = features, self.features
        if distance is not self.distance:
            ours, theirs = self.features_of(samples, distance), self.features_of(self.points, distance)
        found = nearest(ours, theirs, k=min(ORIGINALS, len(theirs)))
        likely = found.sq_distance[:, 0].topk(min(COPIES * ORIGINALS, len(samples)), largest=False).indices
        copies = repeat(samples[likely.cpu()], "s ... -> (s k) ...", k=found.index.shape[1])
        originals = self.points[found.index[likely].flatten().cpu()]
        parts = zip(copies.split(SAMPLE_BATCH), originals.split(SAMPLE_BATCH), strict=True)
        distances = torch.cat([distance.loss(as_float(a.to(self.device)), b.to(self.device)).cpu() for a, b in parts])
        best = rearrange(distances, "(s k) -> s k", s=len(likely)).min(1)
        closest = best.values.topk(min(COPIES, len(likely)), largest=False).indices
        closest = closest * found.index.shape[1] + best.indices[closest]
        title = self.title(f"of {len(samples)} samples the closest to any picture, by {label}")
        return titled(image_pairs(originals[closest], copies[closest]), title)

    def _recall(self, samples: Tensor, features: Tensor) -> Image.Image:
        """Visual recall: each picture beside the nearest sample, as in RS-IMLE's figure 6.

        Search features propose CANDIDATES for each, and the run's distance decides.
        """
        n, best = len(self.points) // (2 if self.recipe.data.mirror else 1), []  # the others are mirror images
        found = nearest(self.features[:n], features, k=min(CANDIDATES, len(samples)))
        for point, candidates in zip(self.points[:n], found.index.cpu(), strict=True):
            among = samples[candidates].to(self.device)
            distances = self.distance.loss(as_float(among), point.to(self.device).expand_as(among))
            best.append(candidates[distances.argmin().cpu()])
        title = self.title(f"pictures, and the nearest of {len(samples)} samples")
        return titled(image_pairs(self.points[:n], samples[torch.stack(best)]), title)

    @torch.no_grad()
    def draw_interpolate(self) -> Image.Image:
        """From one latent code to another: four rows between random ones, four between those of data points."""
        if not self.generates_pictures:
            raise Unsuitable("it generates points, not pictures")
        model = self.model
        if self.between:
            ends = [load_latents(file, self.source, model.latent_dim) for file in self.between]
            pairs = torch.stack(torch.broadcast_tensors(*ends), 1)
            return self._interpolations(pairs, f"from {' to '.join(file.stem for file in self.between)}")
        latents, text = latent_codes(0, 8, model.latent_dim, seed=self.seed), "between random latents"
        if self.source.has_recipe:
            n, assigned = len(self.points), self.tensors["assigned"]
            chosen = torch.linspace(0, n - 1, min(8, n // 2 * 2)).long()
            latents, text = torch.cat([latents, assigned[chosen]]), f"{text} (4 rows), and between those of pictures"
        return self._interpolations(rearrange(latents, "(row pair) dim -> row pair dim", pair=2), text)

    def _interpolations(self, pairs: Tensor, text: str) -> Image.Image:
        """A row of STAGES pictures for each pair of latent codes, [rows, 2, latent_dim]."""
        rows = [slerp(a, b, torch.linspace(0, 1, STAGES)) for a, b in pairs]
        return titled(image_grid(self.model.draw(torch.cat(rows)), STAGES), self.title(text))

    def draw_curves(self) -> Image.Image:
        """Loss and distances over the training, and the FID where it was measured."""
        if not any(record.loss for record in self.log):
            raise Unsuitable("its log holds no loss")
        from imletriton.plotting.charts import curves

        return curves(self.title("training"), self.log)

    def draw_latents(self) -> Image.Image:
        """Which latent codes each data point selected, over the prior."""
        if self.model.latent_dim != 2:
            raise Unsuitable(f"its latent codes have {self.model.latent_dim} dimensions, the plot has 2")
        from imletriton.plotting.charts import latents_over_prior

        latents, owner = (self.tensors[f"misalignment.{k}"] for k in ("latents", "owner"))
        return latents_over_prior(self.title("latents by the data point that selected them"), latents, owner)

    def draw_thresholds(self) -> Image.Image:
        """The thresholds tau_i over the training."""
        log = [record for record in self.log if hasattr(record, "tau_median")]
        if not log:
            raise Unsuitable(f"the strategy {self.recipe.selection.strategy!r} does not use thresholds")
        from imletriton.plotting.charts import thresholds_over_time

        return thresholds_over_time(self.title("thresholds"), log)

    def draw_distances(self) -> Image.Image:
        """Distances of the data points to selected and to random samples, and what the theory predicts."""
        from imletriton.plotting.charts import distance_distributions

        selected, samples = (self.tensors[f"misalignment.{k}"] for k in ("distance", "samples"))
        distances = torch.cdist(self.features.cpu(), samples[samples.isfinite().all(1)])
        pool_size = self.recipe.selection.pool_size(len(self.points))
        return distance_distributions(self.title("distances selected and at random"), selected, distances, pool_size)
