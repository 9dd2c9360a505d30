"""From a model or a folder of its samples to figures: what the command line's `eval` calls."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from imletriton.commands.checks import check_evaluate, open_checkpoint, sample_files
from imletriton.data import check_points, held_out, load_points, training_part
from imletriton.data.catalogue import published
from imletriton.data.folder import BROKEN, read_image
from imletriton.distance import LPIPS
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.metrics import frechet_distance, kernel_distance, precision_recall
from imletriton.metrics.backtracking import backtrack
from imletriton.metrics.features import BATCH, features, kept_features
from imletriton.metrics.networks import VGG16, Inception, Network
from imletriton.plotting.grids import image_pairs, save_picture, titled
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import best_checkpoint, load_state
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import METRICS, Evaluation, Metric

NEIGHBOURS = 3  # k of precision and recall
FEW = 1000  # samples for precision and recall, as in the papers
FEATURES = 2048  # of Inception: fewer pictures than that do not span them
BACKTRACKING = {"starts": 4, "steps": 300}
SEED = 0  # of the samples that are judged
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def evaluate(
    source: Path | None,
    samples: Path | None = None,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    n: int = 5000,
    pretrained: bool = True,
    device: torch.device | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Judge a run's samples, or any folder's, against pictures.

    source: a run (its newest checkpoint) or one of its checkpoints. samples: a folder of pictures of one size to judge
    in its place. data: a source of pictures; by default all of the run's, held out or not, without mirror images.
    metrics: names in METRICS; all that can be had when left out. n: samples (at most FEW for precision and recall).
    pretrained: False takes random weights, whose figures compare with each other only. Returns what eval.json holds,
    which is written into the run unless other samples were judged; what it held for the same checkpoint stays in it.

    Raises InputError for sources that cannot be used, unknown metrics, and too few or unequal pictures.
    """
    where = check_evaluate(source, samples, data, metrics, n)
    run = Checkpoint(*open_checkpoint(source)) if source else None
    judged: Checkpoint | Folder = Folder(samples, n) if samples else run  # type: ignore[assignment]
    pictures = load_points(where, judged.resolution)
    if run and data is None:
        run.check_data(pictures)
    count = min(n, judged.count)
    wanted = list(metrics or (name for name in METRICS if name != "backtracking" or judged.holdout))
    told: list[str] = []
    if min(FEW, count, len(pictures)) <= NEIGHBOURS and {"precision", "recall"} & set(wanted):
        few = f"{len(pictures)} pictures and {count} samples are too few for precision and recall, which look at "
        few += f"{NEIGHBOURS} neighbours: at least {NEIGHBOURS + 1} of both are needed."
        if metrics:
            raise InputError(few)
        wanted, told = [name for name in wanted if name not in ("precision", "recall")], [few]

    device = device or torch.device("cpu")
    result = Evaluation(
        run=str(run.run.path) if run else None,
        step=judged.step,
        samples=str(samples) if samples else f"seed {SEED}",
        count=count,
        data=where,
        pictures=len(pictures),
        resolution=judged.resolution,
        weights="pretrained" if pretrained else "random",
        metrics=_compare(judged.batches(count, device), count, pictures, wanted, pretrained, device, progress),
        published=published(where) if pretrained else {},
        notes=[*_notes(len(pictures), count, wanted, pretrained), *judged.notes, *told],
        imletriton=version("imletriton"),
        written=None,
    )
    if isinstance(judged, Checkpoint):
        _write(judged.run, result)  # before what takes longest
        if "backtracking" in wanted:
            result.metrics["backtracking"] = _backtrack(judged, pretrained, device, progress)
            _write(judged.run, result)
    return result


@dataclass(frozen=True)
class Checkpoint:
    """The generator of a run, at one of its checkpoints."""

    run: Run
    folder: Path
    recipe: Recipe
    count = 2**32  # samples that can be had

    @property
    def step(self) -> int:
        return int(self.folder.name)

    @property
    def resolution(self) -> int:
        return self.recipe.data.resolution

    @property
    def holdout(self) -> float:
        return self.recipe.data.holdout

    @property
    def notes(self) -> list[str]:
        found = []
        if self.holdout:
            found.append("Pictures held out from training are among those compared with.")
        best = best_checkpoint(self.run.path)
        if best.name != self.folder.name and load_state(best).get("fid") is not None:
            found.append(f"The least FID while training was at step {int(best.name)}: imletriton eval {best}")
        return found

    def model(self, device: torch.device) -> Generator:
        return Generator.from_pretrained(self.folder).to(device)

    def batches(self, n: int, device: torch.device) -> Iterator[Tensor]:
        return self.model(device).sample_batches(n, SEED)

    def check_data(self, pictures: Tensor) -> None:
        """Raise InputError where all pictures of the recipe's source are not those that were there in training."""
        trained = training_part(pictures, self.recipe.data.mirror, self.recipe.data.holdout)
        check_points(trained, load_state(self.folder)["data"], str(self.run.path))


class Folder:
    """A folder of pictures of one size. Raises InputError where it is none, or holds fewer than two."""

    holdout, step = 0.0, None

    def __init__(self, path: Path, at_most: int) -> None:
        path = path.expanduser()
        files = sample_files(path)
        self.files, self.count = files[:at_most], min(len(files), at_most)
        sizes: dict[tuple[int, int], Path] = {}
        for file in self.files:
            with _told(file), Image.open(file) as opened:
                sizes.setdefault(opened.size, file)
        (width, height), *others = sizes
        if others or width != height:
            told = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in list(sizes.items())[:3])
            raise InputError(f"{path} holds pictures of {told}: they must be squares of one size.")
        self.resolution = width
        everything = sum(p.is_file() and not p.name.startswith(".") for p in path.rglob("*"))
        self.notes = []
        if everything > len(files):
            self.notes.append(f"Files in {path} that are no pictures were left out: {everything - len(files)}.")
        if len(files) > self.count:
            self.notes.append(f"The first {self.count} of {len(files)} pictures in {path} were taken, by name.")

    def batches(self, n: int, device: torch.device) -> Iterator[Tensor]:
        """uint8 [b, 3, H, W], in the order of the names."""
        for first in range(0, n, BATCH):
            batch = []
            for file in self.files[first : first + BATCH]:
                with _told(file):
                    batch.append(read_image(file, self.resolution))
            yield rearrange(torch.from_numpy(np.stack(batch)), "b h w c -> b c h w")


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise InputError(f"{file} cannot be read ({error}): repair or remove it.") from error


class PassingFID:
    """The FID of a generator in training, by the same ruler as `evaluate`."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.count, self.device = recipe.log.fid_samples, device
        pretrained = recipe.distance.weights == "pretrained"
        self.network = Inception(pretrained).to(device)
        pictures = load_points(recipe.data.source, recipe.data.resolution)
        self.data = kept_features(pictures, self.network, pretrained, device)

    def __call__(self, model: Generator, progress: Callable[[int], None] = lambda done: None) -> float:
        batches = model.sample_batches(self.count, SEED)
        (found,) = features(batches, [(self.network, self.count)], self.device, progress)
        return frechet_distance(found, self.data)


def _compare(
    images: Iterable[Tensor],
    count: int,
    pictures: Tensor,
    wanted: Sequence[str],
    pretrained: bool,
    device: torch.device,
    progress: Progress,
) -> dict[str, Metric]:
    """The metrics that compare features of samples with those of the data."""
    few, networks = min(FEW, count), list[tuple[Network, int]]()
    if {"fid", "kid"} & set(wanted):
        networks.append((Inception(pretrained).to(device), count))
    if {"precision", "recall"} & set(wanted):
        networks.append((VGG16(pretrained).to(device), few))
    if not networks:
        return {}
    data = {network.name: kept_features(pictures, network, pretrained, device) for network, _ in networks}
    most = max(c for _, c in networks)
    made = features(images, networks, device, lambda done: progress("samples", done, most))
    samples = {network.name: x for (network, _), x in zip(networks, made, strict=True)}
    metrics = dict[str, Metric]()
    if "fid" in wanted:
        fid = frechet_distance(samples["inception"], data["inception"])
        metrics["fid"] = Metric(value=fid, samples=count)
    if "kid" in wanted:
        mean, deviation = kernel_distance(samples["inception"], data["inception"])
        metrics["kid"] = Metric(value=mean, deviation=deviation, samples=count)
    if {"precision", "recall"} & set(wanted):
        values = precision_recall(samples["vgg"], data["vgg"], NEIGHBOURS)
        both = dict(zip(("precision", "recall"), values, strict=True))
        metrics |= {name: Metric(value=value, samples=few) for name, value in both.items() if name in wanted}
    return metrics


def _backtrack(judged: Checkpoint, pretrained: bool, device: torch.device, progress: Progress) -> Metric:
    """LPIPS of the best reconstructions of the pictures held out; their picture goes into the run."""
    everything = load_points(judged.recipe.data.source, judged.recipe.data.resolution)
    judged.check_data(everything)
    pictures = held_out(everything, judged.recipe.data.holdout)
    lpips = LPIPS("vgg", 0.0, pretrained, seed=0).to(device)
    total = BACKTRACKING["starts"] * BACKTRACKING["steps"] * len(pictures)
    found, made = backtrack(
        judged.model(device), pictures, lpips, **BACKTRACKING, progress=lambda k: progress("backtracking", k, total)
    )
    title = f"{judged.run.path.resolve().name}, step {judged.step}: held out, and reconstructed"
    save_picture(judged.run.figure("backtracking"), titled(image_pairs(pictures, made), title))
    return Metric(value=float(found.mean()), pictures=len(pictures), **BACKTRACKING)


def _notes(n: int, m: int, wanted: Sequence[str], pretrained: bool) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    if not pretrained:
        notes.append("Random weights: these figures compare with each other, never with published ones.")
    if "fid" in wanted and min(n, m) < FEATURES:
        notes.append(
            f"FID of so few ({n} pictures, {m} samples) is biased upwards: compare it only where both numbers are the "
            "same. KID is not biased, but varies by its ±."
        )
    if "recall" in wanted and n < FEW:
        notes.append(f"Recall of {n} pictures moves in steps of {100 / n:.2g} %.")
    return notes


def _write(run: Run, result: Evaluation) -> None:
    """Write eval.json, with the metrics that it held for the same checkpoint, data and weights."""
    path = run.evaluation_file
    with contextlib.suppress(InputError):
        before = run.evaluation()
        if before and all(getattr(before, k) == getattr(result, k) for k in ("step", "data", "pictures", "weights")):
            result.metrics = before.metrics | result.metrics
    result.metrics = {name: result.metrics[name] for name in METRICS if name in result.metrics}
    result.written = str(path)
    try:
        write_whole(path, lambda file: file.write_text(json.dumps(result.to_json(), indent=1) + "\n", "utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): make room there.") from error
