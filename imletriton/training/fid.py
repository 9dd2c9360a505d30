"""The FID of a generator while it trains, exactly as `imletriton eval` measures it."""

from collections.abc import Callable

import torch

from imletriton.data import load_points
from imletriton.generator import Generator
from imletriton.metrics import frechet_distance
from imletriton.metrics.features import features, kept_features
from imletriton.metrics.networks import Inception
from imletriton.recipe import Recipe

SEED = 0  # of the samples that are judged


class TrainingFID:
    """Measures the FID of a generator while it trains.

    Args:
        recipe: Names the pictures, the number of samples, and whether the network is pretrained.
        device: Where the network runs.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.count, self.device = recipe.log.fid_samples, device
        pretrained = recipe.distance.weights == "pretrained"
        self.network = Inception(pretrained).to(device)
        pictures = load_points(recipe.data.source, recipe.data.resolution)
        self.data = kept_features(pictures, self.network, pretrained, device)

    def __call__(self, model: Generator, progress: Callable[[int], None] = lambda done: None) -> float:
        """The FID of a generator in eval mode; progress is called with the number of samples judged so far."""
        batches = model.sample_batches(self.count, SEED)
        (samples,) = features(batches, [(self.network, self.count)], self.device, progress)
        return frechet_distance(samples, self.data)
