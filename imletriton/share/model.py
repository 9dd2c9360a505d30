"""A trained model with its recipe, its training pictures and its distances."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from imletriton.data import check_points, load_points
from imletriton.distance import Distance
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.generator.model import SAMPLE_BATCH
from imletriton.recipe import Recipe, recipe_of
from imletriton.runs.checkpoint import load_checkpoint
from imletriton.runs.opening import Source, still_there
from imletriton.system.device import choose_device
from imletriton.training.build import make_distance, perceptual_settings


class Unsuitable(Exception):  # noqa: N818
    """The model lacks what is needed; the message says what."""


class Loaded:
    """A trained model, whose properties are loaded when they are first used.

    Properties that need the recipe or the training pictures raise Unsuitable where these are missing.

    Args:
        source: The model.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
    """

    def __init__(self, source: Source, device: str | torch.device | None = None) -> None:
        self.source, self.device = source.now(), choose_device(device)

    @cached_property
    def model(self) -> Generator:
        """The generator, in eval mode."""
        with still_there(self.source.checkpoint):
            return Generator.from_pretrained(self.source).to(self.device)

    @property
    def generates_pictures(self) -> bool:
        """Whether the samples are pictures, rather than points in the plane."""
        return len(self.model.shape) == 3

    @property
    def picture_model(self) -> Generator:
        """The generator.

        Raises:
            InputError: It generates points in the plane.
        """
        if not self.generates_pictures:
            raise InputError(f"{self.source.name} generates points, not pictures: `imletriton show` draws them.")
        return self.model

    @cached_property
    def recipe(self) -> Recipe:
        recipe = recipe_of(self.source)
        if recipe is None:
            raise Unsuitable("it comes without its recipe and the state of its training")
        return recipe

    @cached_property
    def _saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The trainer's tensors and its state at the checkpoint."""
        _ = self.recipe
        return load_checkpoint(self.source.checkpoint)[1:]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._saved[0]

    @property
    def state(self) -> dict[str, Any]:
        return self._saved[1]

    @cached_property
    def points(self) -> Tensor:
        """The data points that it was trained on: uint8 [n, 3, H, W] or float32 [n, 2]."""
        points = load_points(**self.recipe.data.model_dump())
        check_points(points, self.state["data"], str(self.source.run.path))
        return points

    @cached_property
    def distance(self) -> Distance:
        """The recipe's distance."""
        return make_distance(self.recipe.distance, self.model.shape, self.recipe.train.seed).to(self.device)

    @cached_property
    def perceptual(self) -> tuple[Distance, str]:
        """The distance that is closest to how people see, and its name; see `perceptual_settings`."""
        recipe = recipe_of(self.source)
        settings = perceptual_settings(recipe.distance if recipe else None, self.model.shape[-1])
        if recipe and settings == recipe.distance:
            return self.distance, settings.label
        seed = recipe.train.seed if recipe else 0
        return make_distance(settings, self.model.shape, seed).to(self.device), settings.label

    def features_of(self, images: Tensor, distance: Distance) -> Tensor:
        """The search features of images, uint8 [n, 3, H, W], by a distance: float32 [n, d]."""
        return torch.cat([distance.features(part.to(self.device)) for part in images.split(SAMPLE_BATCH)])
