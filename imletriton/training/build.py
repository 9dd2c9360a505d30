"""From a recipe to what it describes: the distance, and the trainer with all its parts."""

import torch
from torch import Tensor

from imletriton.distance import LPIPS, Bands, Distance, Euclidean, Pixels
from imletriton.distance.weights import weights_file
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.sections import DistanceConfig
from imletriton.selection import STRATEGIES, Strategy
from imletriton.system.distributed import ALONE, Group
from imletriton.training.trainer import Trainer


def build(recipe: Recipe, points: Tensor, device: torch.device, group: Group = ALONE) -> Trainer:
    """Build the trainer that a recipe describes, at step 0. The same arguments give the same trainer.

    Args:
        recipe: The recipe.
        points: The n data points, uint8 [n, 3, H, W] or float32 [n, 2].
        device: Where to train.
        group: The processes that train together.

    Raises:
        InputError: The recipe does not suit so many data points, or a strategy, mapping or decoder cannot be loaded.
    """
    pool_size = recipe.selection.pool_size(len(points))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        generator = Generator(**recipe.generator.model_dump())
    distance = make_distance(recipe.distance, tuple(points.shape[1:]), recipe.train.seed)
    strategy = make_strategy(recipe, len(points))
    noise = recipe.selection.noise
    return Trainer(points, generator, distance, strategy, recipe.train, pool_size, noise, device, group)


def make_strategy(recipe: Recipe, n: int) -> Strategy:
    """Make the selection strategy that a recipe names, for n data points.

    Raises:
        InputError: It cannot be loaded.
    """
    kind = STRATEGIES.find(recipe.selection.strategy)
    strategy: Strategy = kind(n, kind.Parameters(**recipe.selection.parameters))
    return strategy


def make_distance(settings: DistanceConfig, shape: tuple[int, ...], seed: int) -> Distance:
    """Make the distance that a recipe's [distance] section describes.

    Args:
        settings: The section.
        shape: The shape of one data point.
        seed: The random seed of the projection into the search space, and of random weights.
    """
    distance: Distance
    if settings.kind == "lpips":
        distance = LPIPS(settings.backbone, settings.pixel_weight, settings.weights == "pretrained", seed)
    elif settings.kind == "bands":
        distance = Bands(settings.network_weight, settings.network)
    else:
        distance = {"pixels": Pixels, "euclidean": Euclidean}[settings.kind]()
    distance.prepare(shape, settings.projection_dim, settings.search, settings.normalize, seed)
    return distance


def perceptual_settings(settings: DistanceConfig | None, resolution: int) -> DistanceConfig:
    """Choose the distance that is nearest to how people see, of those that need no download on this machine.

    Args:
        settings: A recipe's [distance] section for images; None for a model without a recipe.
        resolution: The side of the images in pixels.

    Returns:
        What `make_distance` takes: LPIPS plus pixels where the weights of VGG16 are here and the images are large
        enough for it; else the recipe's own distance, and "bands" without a recipe.
    """
    settings = settings or DistanceConfig(kind="bands")
    seen = DistanceConfig(kind="lpips", projection_dim=settings.projection_dim)
    own = settings.kind == "lpips" and settings.weights == "pretrained"
    return settings if own or resolution < seen.least_resolution or not weights_file("vgg").is_file() else seen
