"""From a recipe to what it describes: the distance, and the trainer with all its parts."""

import torch
from torch import Tensor

from imletriton import recipe as recipes
from imletriton.distance import LPIPS, Distance, Euclidean, Pixels
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.selection import STRATEGIES
from imletriton.system.distributed import ALONE, Group
from imletriton.trainer import Trainer


def build(recipe: Recipe, points: Tensor, device: torch.device, group: Group = ALONE) -> Trainer:
    """The trainer that a recipe describes, for these data points, at step 0. The same one each time."""
    size = recipe.selection.pool_size(len(points))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        generator = Generator(**recipe.generator.model_dump())
    distance = make_distance(recipe.distance, tuple(points.shape[1:]), recipe.train.seed)
    strategy = STRATEGIES.find(recipe.selection.strategy)
    chosen = strategy(len(points), strategy.Parameters(**recipe.selection.parameters))
    return Trainer(points, generator, distance, chosen, recipe.train, size, recipe.selection.noise, device, group)


def make_distance(settings: recipes.DistanceConfig, shape: tuple[int, ...], seed: int) -> Distance:
    """The distance that a recipe's [distance] section describes, for data points of a shape."""
    distance: Distance
    if settings.kind == "lpips":
        distance = LPIPS(settings.backbone, settings.pixel_weight, settings.weights == "pretrained", seed)
    else:
        distance = {"pixels": Pixels, "euclidean": Euclidean}[settings.kind]()
    distance.prepare(shape, settings.projection_dim, settings.search, settings.normalize, seed)
    return distance
