"""One training run and its figures, and the figures of pictures that are known to be good or bad."""

import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.figures import (
    against_training,
    against_truth,
    compared,
    distance_apart,
    octaves,
    with_faults,
)
from benchmarks.quality.judge import trained_features
from benchmarks.quality.methods import FACES, FLOOR_SEED, TRUTH, Source, draw, recipe_of
from imletriton.commands.fit import fit
from imletriton.generator import Generator

SAMPLES, SAMPLE_SEED = 5000, 1
SHEET = 64  # samples that are kept for the sheets
Figures = dict[str, float]


def judge(samples: Tensor, training: Tensor, truth: Tensor) -> Figures:
    """All figures of samples, uint8 [m, 3, S, S]; the energies of the spectrum are divided by the truth's."""
    energy = [ours / theirs for ours, theirs in zip(octaves(samples), octaves(truth), strict=True)]
    spectrum = {f"octave_{k}": value for k, value in enumerate(energy)} | {"sharpness": energy[-1]}
    return against_truth(samples, truth) | against_training(samples, training) | spectrum


def judge_in_trained_features(samples: Tensor, truth: Tensor) -> Figures:
    """Frechet distance, precision, recall, density and coverage by the trained network.

    Args:
        samples: uint8 [m, 3, S, S].
        truth: The features of the truth, float32 [n, 1280].
    """
    return {f"trained_{name}": value for name, value in compared(trained_features(samples), truth).items()}


def truth_files(folder: Path, resolution: int) -> tuple[Path, Path]:
    """The files that all runs share: the true pictures, and their features by the trained network."""
    return folder / f"truth-{resolution}.npy", folder / f"truth-{resolution}-trained.npy"


def one_run(
    method: str,
    resolution: int,
    seed: int,
    images: int,
    budget: str,
    folder: Path,
    data: Source = FACES,
    trained: bool = False,
) -> dict[str, Any]:
    """Train once and judge the result.

    Args:
        method: A key of METHODS.
        resolution: The side of the images.
        seed: The random seed of training.
        images: How many images it trains on.
        budget: What is equal in all methods, "images" or "time".
        folder: Holds the truth, and gets samples for a sheet.
        data: What to train on.
        trained: Whether the trained network judges too.

    Returns:
        One run for the JSON file; `seconds` is the processor time of training.
    """
    torch.set_num_threads(1)
    batch = recipe_of(method, resolution, seed, 1, data).train.batch_size
    recipe = recipe_of(method, resolution, seed, max(1, round(images / batch)), data)
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        run = fit(recipe, Path(place) / "run", device="cpu")
        seconds = time.process_time() - began
        model = Generator.from_pretrained(run.path)
    samples = model.sample(SAMPLES, seed=SAMPLE_SEED)
    np.save(folder / f"{method}-{resolution}-{seed}-{budget}.npy", samples[:SHEET].numpy())
    truth, features = truth_files(folder, resolution)
    figures = judge(samples, data.training(resolution), torch.from_numpy(np.load(truth)))
    if trained:
        figures |= judge_in_trained_features(samples, torch.from_numpy(np.load(features)))
    setting = {"method": method, "resolution": resolution, "seed": seed, "budget": budget, "images": images}
    return setting | {"date": date.today().isoformat(), "seconds": round(seconds, 1)} | figures


def floor(
    resolution: int, truth: Tensor, data: Source = FACES, features: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """The same figures of the training pictures themselves, and of as many other faces as the truth has.

    Args:
        resolution: The side of the images.
        truth: What to compare with.
        data: What is trained on.
        features: Those of the truth by the trained network, if it judges too.
    """

    def figures_of(images: Tensor, own: Figures) -> Figures:
        return own | (judge_in_trained_features(images, features) if features is not None else {})

    training = data.training(resolution)
    copies = against_truth(training, truth) | {"sample_to_training": 0.0}
    found = {"training pictures": figures_of(training, copies)}
    distances = {"training": distance_apart(truth, training)}
    if not data.is_folder:
        others = draw(resolution, TRUTH, FLOOR_SEED)
        found["others"] = figures_of(others, judge(others, training, truth))
        for name, images in with_faults(others).items() if features is not None else ():
            found[f"others, {name}"] = figures_of(images, against_truth(images, truth))
        distances["others"] = distance_apart(truth, others)
    return found | {"distances": distances}
