"""The methods that benchmarks.quality compares, and the data that they are trained on and judged by."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.candidates import TRAINERS
from imletriton.data import held_out, load_points
from imletriton.data.faces import faces
from imletriton.data.toy2d import toy2d
from imletriton.recipe import Recipe

ROOT = Path(__file__).parents[1]
TRUTH = 5000
TRUTH_SEED, FLOOR_SEED = 1001, 1002  # of what is drawn for comparison; training has other seeds
PICTURES = 100  # to train on where they are drawn; so many faces are the built-in ones
TRAINING_SEED, DEVIATION = 1000, 0.06  # of other numbers of faces, and of points; their deviation in "toy2d"
RESOLUTIONS = 32, 64
METHODS: dict[str, dict[str, Any]] = {  # the first is what the others are compared with
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
VARIANTS: dict[str, dict[str, Any]] = {  # changes to the first method
    "refresh 30": {"selection.refresh": 30},
    "pool 40n": {"selection.pool": "40n"},
    "batch 8": {"train.batch_size": 8},
    "learning rate doubled": {"train.learning_rate": 6e-3},
    "16 latent dimensions": {"generator.latent_dim": 16},
    "width 48": {"generator.width": 48, "generator.bottleneck": 0.7},
    "mirrored": {"data.mirror": True},
    "bands": {"distance.kind": "bands"},
    "bands, batch 8": {"distance.kind": "bands", "train.batch_size": 8},
    "rejection, calibrated": {"train.calibrate": True},
    "calibrated": {
        "distance.kind": "bands",
        "generator.start": "style",
        "generator.upsampling": "bilinear",
        "train.batch_size": 8,
        "train.calibrate": True,
    },
}
VARIANTS["calibrated, network"] = VARIANTS["calibrated"] | {"distance.network_weight": 0.3}
VARIANTS["calibrated, network, batch 16"] = VARIANTS["calibrated, network"] | {"train.batch_size": 16}
VARIANTS["calibrated, batch 16"] = VARIANTS["calibrated"] | {"train.batch_size": 16}
VARIANTS["calibrated, trained network"] = VARIANTS["calibrated, network"] | {"distance.network": "efficientnet"}
for name in ("calibrated", "calibrated, network, batch 16", "calibrated, batch 16", "calibrated, trained network"):
    VARIANTS[name.replace("calibrated", "calibrated, patches")] = VARIANTS[name] | {"generator.patch": 2}
VARIANTS["calibrated, patches, trained network"]["distance.network_weight"] = 0.12  # as the demo has it
for name in ("calibrated, trained network", "calibrated, patches, trained network"):
    VARIANTS[f"{name}, batch 16"] = VARIANTS[name] | {"train.batch_size": 16}
METHODS |= {name: METHODS[BASE] | changes for name, changes in VARIANTS.items()}
OWN = "calibrated"
# What is compared with the first method in pairs.
BEST = {32: "calibrated, trained network", 64: "calibrated, patches, trained network"}
# Changes to OWN. Those that benchmarks/candidates has a trainer for change that, and nothing else besides.
CANDIDATES: dict[str, dict[str, Any]] = {name: {} for name in TRAINERS} | {
    "schedule-free": {"train.betas": [0.0, 0.99]},
    "shorter average": {"train.ema": 0.98},
    "longer average": {"train.ema": 0.999},
    # The decoder's other shapes take as many multiplications, within 5 %.
    "deeper, narrower": {"generator.width": 22, "generator.blocks": "4x4,8m4,8x4,16m8,16x3,32m16,32x1"},
    "shallower, wider": {"generator.width": 36, "generator.blocks": "4x1,8m4,16m8,32m16"},
    "more blocks at 32x32": {"generator.width": 26, "generator.blocks": "4x1,8m4,8x1,16m8,16x1,32m16,32x1"},
    "more blocks at 4x4 and 8x8": {"generator.width": 34, "generator.blocks": "4x3,8m4,8x3,16m8,32m16"},
    "calibrated, refresh 5, pool 5n": {"selection.refresh": 5, "selection.pool": "5n"},
    "calibrated, refresh 20": {"selection.refresh": 20},
    "network at full resolution, batch 16": {"train.batch_size": 16},
    "nearest upsampling, batch 16": {"train.batch_size": 16, "generator.upsampling": "nearest"},
    "not calibrated": {"train.calibrate": None},
    "constant start": {"generator.start": "constant"},
    "nearest upsampling": {"generator.upsampling": "nearest"},
    "papers' decoder": {"generator.start": "constant", "generator.upsampling": "nearest"},
    "papers' decoder, twice the energies": {"generator.start": "constant", "generator.upsampling": "nearest"},
    "first bands": {"generator.start": "constant", "generator.upsampling": "nearest", "train.calibrate": None},
    "recursive mapping": {"generator.mapping": "recursive"},
    "half the learning rate": {"train.learning_rate": 1.5e-3},
    "batch 4, bands": {"train.batch_size": 4},
    "slower average of squares": {"train.betas": [0.9, 0.99]},
    "mirrored, bands": {"data.mirror": True},
    "width 48, bands": {"generator.width": 48, "generator.bottleneck": 0.7},
    "16 latent dimensions, bands": {"generator.latent_dim": 16},
    "adaptive-rejection, bands": METHODS["adaptive-rejection"] | {"selection.refresh": None},
    "vanilla, bands": METHODS["vanilla"] | {"selection.epsilon": None},
    "vanilla, near pairs": METHODS["vanilla"] | {"selection.epsilon": None},
}
for name, changes in CANDIDATES.items():  # None leaves out what OWN has
    METHODS[name] = {key: value for key, value in (METHODS[OWN] | changes).items() if value is not None}

# What is compared in the plane by default: whatever differs in its selection.
IN_PLANE = ["rejection", "vanilla", "adaptive", "adaptive-rejection", "refresh 30", "pool 40n", "averaged selection"]
IN_PLANE += ["kept pools", "local search", "one of three", "soft top 3", "own radius"]
IN_PLANE += ["reverse pairs", "near pairs", "vanilla, near pairs", "alternating pairs"]


class Source(NamedTuple):
    """What is trained on: "faces", "toy2d" for points in the plane, or a folder of pictures."""

    source: str = "faces"
    holdout: float = 0.0  # the share of a folder's pictures that are the truth
    pictures: int = PICTURES  # how many are trained on, where they are drawn

    @property
    def name(self) -> str:
        """The beginning of the names of the results."""
        return Path(self.source).resolve().name if self.is_folder else self.source

    @property
    def is_built_in(self) -> bool:
        """Whether the package has what is trained on, so that `fit` reads it itself."""
        return self.is_folder or (self.source == "faces" and self.pictures == PICTURES)

    @property
    def is_folder(self) -> bool:
        return self.source not in ("faces", "toy2d")

    @property
    def in_plane(self) -> bool:
        return self.source == "toy2d"

    def training(self, resolution: int) -> Tensor:
        """The data points to train on: pictures, uint8 [n, 3, resolution, resolution], or points, float32 [n, 2]."""
        if self.is_built_in:
            return load_points(self.source, resolution, holdout=self.holdout)
        return self.draw(resolution, self.pictures, TRAINING_SEED)

    def truth(self, resolution: int) -> Tensor:
        """The data points to compare samples with, in the same form."""
        if not self.is_folder:
            return self.draw(resolution, TRUTH, TRUTH_SEED)
        pictures = load_points(self.source, resolution)
        return held_out(pictures, self.holdout) if self.holdout else pictures

    def draw(self, resolution: int, count: int, seed: int) -> Tensor:
        """Draw data points that were never trained on. There are none of a folder."""
        return mixture(count, seed) if self.in_plane else draw(resolution, count, seed)


FACES = Source()


def draw(resolution: int, count: int, seed: int) -> Tensor:
    """Draw faces: uint8 [count, 3, resolution, resolution]."""
    return rearrange(torch.from_numpy(faces(resolution, count, seed)), "n h w c -> n c h w").contiguous()


def mixture(count: int, seed: int) -> Tensor:
    """Draw from a mixture of twelve normal distributions about the points of toy2d: float32 [count, 2]."""
    rng = torch.Generator().manual_seed(seed)
    centres = toy2d()[torch.randint(12, (count,), generator=rng)]
    return centres + DEVIATION * torch.randn(count, 2, generator=rng)


def recipe_of(method: str, resolution: int, seed: int, steps: int, data: Source = FACES) -> Recipe:
    """The recipe of a run. In the plane, methods differ in their selection only."""
    if METHODS[method].get("generator.mapping") == "recursive":
        import benchmarks.recursive_mapping  # noqa: F401  # here, as every recipe knows its name from then on
    changes: dict[str, Any] = {"train.seed": seed, "train.iterations": steps}
    changes |= {"log.samples_every": steps, "log.checkpoint_every": steps, "log.measure_every": 0}
    if data.in_plane:
        changes |= {"selection.pool": "10n", "train.batch_size": 16}
        own = {key: value for key, value in METHODS[method].items() if key.startswith("selection.")}
        return Recipe.load(ROOT / "recipes/toy2d.toml", changes | own)
    changes |= {"data.resolution": resolution, "data.source": data.source, "data.holdout": data.holdout}
    if "generator.blocks" not in METHODS[method]:
        changes |= {"generator.blocks": "auto", "generator.depth": 2}
    return Recipe.load(ROOT / "recipes/faces.toml", changes | METHODS[method])
