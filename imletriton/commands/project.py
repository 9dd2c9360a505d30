"""The latent codes of photos: what `imletriton project` calls."""

from collections.abc import Callable

import torch
from torch import Tensor

from imletriton.distance import Distance
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.metrics.backtracking import Projection, backtrack


def project_images(
    model: Generator,
    images: Tensor,
    distance: Distance,
    starts: int = 64,
    steps: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Projection:
    """Find the latent codes whose samples are nearest to images.

    What is found for an image depends on the image, the model and the seed alone, not on the other images.

    Args:
        model: The generator. Its weights are frozen by this call.
        images: uint8 [n, 3, H, W], of the size that the model generates.
        distance: What is minimised, on the model's device.
        starts: How many random latent codes the search for each image begins with.
        steps: How many steps of optimisation.
        seed: The random seed of the starts.
        progress: Called with the number of steps done so far, out of n * steps.

    Returns:
        Latent codes, float32 [n, latent_dim], the samples that the model makes of them, uint8 [n, 3, H, W], and their
        distances to the images, float32 [n], all on the CPU.

    Raises:
        InputError: The model generates points, not pictures.
        ValueError: There are no images, they are of another size or type, or starts or steps are less than 1.
    """
    if len(model.shape) != 3:
        raise InputError("A model that generates points has no latent codes of pictures: take one that makes pictures.")
    if images.shape[1:] != model.shape or not len(images) or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 [n, {', '.join(map(str, model.shape))}], not {tuple(images.shape)}")
    if min(starts, steps) < 1:
        raise ValueError(f"starts and steps must be at least 1, not {starts} and {steps}")
    found = list[Projection]()
    for k, image in enumerate(images):  # each alone, as the number of an image decides what its search begins with

        def told(step: int, before: int = k * steps) -> None:
            progress(before + step)

        found.append(backtrack(model, image[None], distance, starts, steps, seed, told))
    return Projection(*(torch.cat(parts) for parts in zip(*found, strict=True)))
