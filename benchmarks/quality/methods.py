"""The methods that are compared, as changes to recipes/faces.toml, and the pictures to train on and judge by."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.measure import ROOT
from imletriton.data import held_out, load_points
from imletriton.data.faces import faces
from imletriton.recipe import Recipe

TRUTH = 5000
TRUTH_SEED, FLOOR_SEED = 1001, 1002  # of the faces drawn for comparison; the training faces have another seed
RESOLUTIONS = 32, 64
METHODS: dict[str, dict[str, Any]] = {  # all others are compared with the first one
    "rejection": {"selection.strategy": "rejection", "selection.epsilon": "auto", "selection.refresh": 10},
    "vanilla": {"selection.strategy": "vanilla", "selection.refresh": 10},
    "adaptive": {"selection.strategy": "adaptive", "selection.staleness": 10},
    "adaptive-rejection": {
        "selection.strategy": "adaptive-rejection",
        "selection.epsilon": "auto",
        "selection.staleness": 10,
    },
}
BASE = next(iter(METHODS))
METHODS["rejection, calibrated"] = METHODS[BASE] | {"train.calibrate": True}
METHODS["calibrated"] = METHODS[BASE] | {
    "distance.kind": "bands",
    "generator.start": "style",
    "generator.upsampling": "bilinear",
    "train.batch_size": 8,
    "train.calibrate": True,
}
METHODS["calibrated, trained network"] = METHODS["calibrated"] | {
    "distance.network": "efficientnet",
    "distance.network_weight": 0.3,
}
METHODS["calibrated, patches"] = METHODS["calibrated"] | {"generator.patch": 2}
METHODS["calibrated, patches, trained network"] = METHODS["calibrated, patches"] | {
    "distance.network": "efficientnet",
    "distance.network_weight": 0.12,  # as in the demo
}
# Shown beside the first method on the sheet of pairs.
BEST = {32: "calibrated, trained network", 64: "calibrated, patches, trained network"}


class Source(NamedTuple):
    """What is trained on: the built-in faces, or a folder of pictures."""

    source: str = "faces"
    holdout: float = 0.0  # the share of a folder's pictures that are the truth

    @property
    def is_folder(self) -> bool:
        return self.source != "faces"

    @property
    def name(self) -> str:
        """The beginning of the names of the results."""
        return Path(self.source).resolve().name if self.is_folder else self.source

    def training(self, resolution: int) -> Tensor:
        """The pictures to train on, uint8 [n, 3, resolution, resolution]."""
        return load_points(self.source, resolution, holdout=self.holdout)

    def truth(self, resolution: int) -> Tensor:
        """The pictures to compare samples with, uint8 [n, 3, resolution, resolution]."""
        if not self.is_folder:
            return draw(resolution, TRUTH, TRUTH_SEED)
        pictures = load_points(self.source, resolution)
        return held_out(pictures, self.holdout) if self.holdout else pictures


FACES = Source()


def draw(resolution: int, count: int, seed: int) -> Tensor:
    """Draw faces, uint8 [count, 3, resolution, resolution]."""
    return rearrange(torch.from_numpy(faces(resolution, count, seed)), "n h w c -> n c h w").contiguous()


def recipe_of(method: str, resolution: int, seed: int, steps: int, data: Source = FACES) -> Recipe:
    """The recipe of a run."""
    changes: dict[str, Any] = {"train.seed": seed, "train.iterations": steps}
    changes |= {"log.samples_every": steps, "log.checkpoint_every": steps, "log.measure_every": 0}
    changes |= {"data.resolution": resolution, "data.source": data.source, "data.holdout": data.holdout}
    changes |= {"generator.blocks": "auto", "generator.depth": 2}
    return Recipe.load(ROOT / "recipes/faces.toml", changes | METHODS[method])
