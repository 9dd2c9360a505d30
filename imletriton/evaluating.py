"""From a model or a folder of its samples to figures: what the command line's `eval` calls."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imletriton.data import held_out, load_points
from imletriton.data.catalogue import published
from imletriton.data.folder import list_images, read_image
from imletriton.distance import LPIPS
from imletriton.errors import InputError, suggestion
from imletriton.figures import image_pairs, save_picture
from imletriton.generator import Generator
from imletriton.metrics import frechet_distance, kernel_distance, precision_recall
from imletriton.metrics.backtracking import backtrack
from imletriton.metrics.features import BATCH, features, kept_features
from imletriton.metrics.networks import VGG16, Inception, Network
from imletriton.recipe import Recipe
from imletriton.run import Run, newest_checkpoint, write_whole

METRICS = ("fid", "kid", "precision", "recall", "backtracking")
NEIGHBOURS = 3  # k of precision and recall
FEW = 1000  # samples for precision and recall, as in the papers
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
) -> dict[str, Any]:
    """Judge a run's samples, or any folder's, against the pictures that it was trained on.

    source: a run (its newest checkpoint). samples: a folder of pictures of one size to judge in its place. data: a
    source of pictures; by default the run's. metrics: names in METRICS; all that can be had when left out. n: samples
    (at most FEW for precision and recall). pretrained: False takes random weights, whose figures compare with each
    other only. Returns what eval.json holds, which is written into the run unless other samples were judged.

    Raises InputError for sources that cannot be used, unknown metrics, and too few or unequal pictures.
    """
    for name in metrics or ():
        if name not in METRICS:
            raise InputError(f"--metrics: {name!r} is not known: {suggestion(name, METRICS)}")
    if n < 2:
        raise InputError(f"--n must be at least 2, not {n}.")
    recipe, checkpoint = _open(source) if source else (None, None)
    if recipe is None and (samples is None or data is None):
        raise InputError("eval needs a run, or --samples DIR with --data SOURCE to compare them with.")
    if metrics and "backtracking" in metrics and (samples or recipe is None or not recipe.data.holdout):
        raise InputError("backtracking needs a run that was trained with data.holdout, such as 0.1.")
    judged = Folder(samples, n) if samples else None
    resolution = recipe.data.resolution if recipe and not judged else judged.size if judged else 0
    where = data or (recipe.data.source if recipe else "")
    pictures = load_points(where, resolution)
    if pictures.ndim != 4:
        raise InputError(f"{source} generates points, not pictures: `imletriton show` draws them.")
    model = Generator.from_pretrained(checkpoint).to(device or "cpu") if checkpoint and not judged else None
    held = model is not None and recipe is not None and recipe.data.holdout > 0
    wanted = list(metrics or (METRICS if held else METRICS[:-1]))  # the last one needs pictures held out
    count = judged.count if judged else n
    images = judged.batches() if judged else model.sample_batches(n, SEED)  # type: ignore[union-attr]
    found = _compare(images, count, pictures, wanted, pretrained, device or torch.device("cpu"), progress)
    if "backtracking" in wanted:
        assert model and recipe and source
        found["backtracking"] = _backtrack(model, recipe, source, pretrained, progress)
    result: dict[str, Any] = {
        "run": str(source) if source else None,
        "step": int(checkpoint.name) if checkpoint and model else None,
        "samples": str(samples) if samples else f"seed {SEED}",
        "data": where,
        "pictures": len(pictures),
        "resolution": resolution,
        "weights": "pretrained" if pretrained else "random",
        "metrics": found,
        "published": published(where),
        "notes": _notes(len(pictures), count, wanted, pretrained, judged),
        "imletriton": version("imletriton"),
        "written": str(source / "eval.json") if source and not judged else None,
    }
    if path := result["written"]:
        try:
            write_whole(Path(path), lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): make room there.") from error
    return result


class Folder:
    """A folder of pictures of one size. Raises InputError where it is none."""

    def __init__(self, path: Path, at_most: int) -> None:
        self.files = list_images(path)[:at_most]
        self.path, self.count = path, len(self.files)
        sizes: dict[tuple[int, int], Path] = {}
        for file in self.files:
            try:
                with Image.open(file) as opened:
                    sizes.setdefault(opened.size, file)
            except OSError as error:
                raise InputError(f"{file} cannot be read ({error}): repair or remove it.") from error
        if len(sizes) > 1 or (side := min(next(iter(sizes)))) != max(next(iter(sizes))):
            told = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in list(sizes.items())[:3])
            raise InputError(f"{path} holds pictures of {told}: they must be squares of one size.")
        self.size = side
        others = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
        self.others = len(others) - len(list_images(path))

    def batches(self) -> Iterable[Tensor]:
        """uint8 [b, 3, H, W], in the order of the names."""
        for first in range(0, self.count, BATCH):
            batch = []
            for file in self.files[first : first + BATCH]:
                try:
                    batch.append(read_image(file, self.size))
                except (OSError, ValueError, SyntaxError) as error:
                    raise InputError(f"{file} cannot be read ({error}): repair or remove it.") from error
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


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


def _open(source: Path) -> tuple[Recipe, Path]:
    run = Run(source)
    checkpoint = newest_checkpoint(source)
    if not run.recipe_file.is_file() or checkpoint is None:
        raise InputError(f"{source} holds no run with a checkpoint: name a run's folder, or a folder with --samples.")
    return Recipe.load(run.recipe_file), checkpoint


def _compare(
    images: Iterable[Tensor],
    count: int,
    pictures: Tensor,
    wanted: Sequence[str],
    pretrained: bool,
    device: torch.device,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """The metrics that compare features of samples with those of the data."""
    networks: list[tuple[Network, int]] = []
    if {"fid", "kid"} & set(wanted):
        networks.append((Inception(pretrained).to(device), count))
    few = min(FEW, count)
    if {"precision", "recall"} & set(wanted):
        if min(few, len(pictures)) <= NEIGHBOURS:
            raise InputError(
                f"precision and recall look at {NEIGHBOURS} neighbours: {len(pictures)} pictures and {few} samples "
                f"are too few, at least {NEIGHBOURS + 1} of both are needed."
            )
        networks.append((VGG16(pretrained).to(device), few))
    if not networks:
        return {}
    data = {network.name: kept_features(pictures, network, pretrained, device) for network, _ in networks}
    most = max(c for _, c in networks)
    made = features(images, networks, device, lambda done: progress("samples", done, most))
    samples = {network.name: x for (network, _), x in zip(networks, made, strict=True)}
    found: dict[str, dict[str, float]] = {}
    if "fid" in wanted:
        found["fid"] = {"value": frechet_distance(samples["inception"], data["inception"]), "samples": count}
    if "kid" in wanted:
        mean, deviation = kernel_distance(samples["inception"], data["inception"])
        found["kid"] = {"value": mean, "deviation": deviation, "samples": count}
    if {"precision", "recall"} & set(wanted):
        values = precision_recall(samples["vgg"], data["vgg"], NEIGHBOURS)
        both = dict(zip(("precision", "recall"), values, strict=True))
        found |= {name: {"value": value, "samples": few} for name, value in both.items() if name in wanted}
    return found


def _backtrack(model: Generator, recipe: Recipe, run: Path, pretrained: bool, progress: Progress) -> dict[str, float]:
    """LPIPS of the best reconstructions of the pictures held out; their picture goes into the run."""
    pictures = held_out(recipe.data.source, recipe.data.resolution, recipe.data.holdout)
    lpips = LPIPS("vgg", 0.0, pretrained, seed=0).to(next(model.parameters()).device)
    total = len(pictures) * math.prod(BACKTRACKING.values())
    found, made = backtrack(
        model, pictures, lpips, **BACKTRACKING, progress=lambda done: progress("backtracking", done, total)
    )
    save_picture(run / "figures" / "backtracking.png", image_pairs(pictures, made))
    return {"value": float(found.mean()), "pictures": len(pictures), **BACKTRACKING}


def _notes(n: int, m: int, wanted: Sequence[str], pretrained: bool, folder: Folder | None) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    if not pretrained:
        notes.append("Random weights: these figures compare with each other, never with published ones.")
    if "fid" in wanted:
        notes.append(
            f"FID depends on how many are compared, here {n} pictures and {m} samples; "
            "compare it only where both are the same."
        )
    if "recall" in wanted and n < 1000:
        notes.append(f"Recall of {n} pictures moves in steps of {100 / n:.{max(0, 1 - int(math.log10(100 / n)))}f} %.")
    if folder and folder.others:
        notes.append(f"{folder.others} files in {folder.path} are no pictures and were left out.")
    return notes
