"""Backtracking: find latent codes that reconstruct images.

With LPIPS, and images that the generator was not trained on, the distances are a metric (Liu et al., ICLR 2021).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.distance import Distance, as_float
from imletriton.distance.base import Embedding
from imletriton.generator import Generator, latent_codes

PIXELS = 4 * 256 * 256  # reconstructed at once: as much memory as a training step with batch size 4
LEARNING_RATE = 0.1  # for latent codes, whose coordinates are about 1; decays to 0 along a cosine
FINALISTS = 4  # starts per image that are optimised to the end; of more, a quarter remains at each of the CUTS
CUTS = (0.1, 0.3)  # as shares of the steps
STREAM = 1  # of the random starts


class Projection(NamedTuple):
    """The latent codes that reconstruct images best, all on the CPU."""

    latents: Tensor  # float32 [n, latent_dim]
    images: Tensor  # the reconstructions, uint8 [n, 3, H, W]
    distance: Tensor  # d(reconstruction, image), float32 [n]


def backtrack(
    model: Generator,
    images: Tensor,
    distance: Distance,
    starts: int = 4,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Projection:
    """Reconstruct images by optimising latent codes z to minimise d(T(z), image).

    For each image, Adam starts from several random latent codes. If there are more than FINALISTS, the worst are given
    up early. The best reconstruction is returned.

    Args:
        model: The generator T. This call freezes its weights.
        images: uint8 [n, 3, H, W].
        distance: The distance d.
        starts: The number of random latent codes for each image.
        steps: The number of optimisation steps.
        seed: The random seed of the starts.
        progress: Called with the number of steps done so far, out of n * steps.
    """
    device = next(model.parameters()).device
    model.requires_grad_(False)
    progress(0)
    found = list[tuple[Tensor, Tensor, Tensor]]()
    for k, image in enumerate(images):
        z = latent_codes(k * starts, (k + 1) * starts, model.latent_dim, seed=seed, stream=STREAM).to(device)
        with torch.no_grad():
            target = distance.target(image[None].to(device))

        def told(step: int, before: int = k * steps) -> None:
            progress(before + step)

        z = _descend(model, z, target, distance, steps, told)
        with torch.no_grad():
            made = model.decoder.at_rest(model(z))
            distances = distance.loss(as_float(made), target)
        best = distances.nan_to_num(torch.inf).argmin()
        found.append((z[best].cpu(), made[best].cpu(), distances[best].cpu()))
    return Projection(*map(torch.stack, zip(*found, strict=True)))


def _descend(
    model: Generator,
    z: Tensor,
    target: Embedding,
    distance: Distance,
    steps: int,
    progress: Callable[[int], None],
) -> Tensor:
    """Optimise starts z [starts, dim] towards one target by Adam (Kingma and Ba, ICLR 2015); the best remain."""
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    chunk = max(1, PIXELS // math.prod(model.shape[1:]))
    longest = model.latent_dim**0.5 + 2  # hardly any standard normal code is longer
    cuts = {math.ceil(share * steps) for share in CUTS}
    for step in range(steps):
        parts = [_gradient(model, part, target, distance) for part in z.split(chunk)]
        losses, gradient = (torch.cat(both) for both in zip(*parts, strict=True))
        if step in cuts and len(z) > FINALISTS:
            kept = losses.nan_to_num(torch.inf).topk(max(FINALISTS, len(z) // 4), largest=False).indices
            z, gradient, mean, square = z[kept], gradient[kept], mean[kept], square[kept]
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        rate = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2 / (1 - 0.9 ** (step + 1))
        z = z - rate * mean / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        z = z * (longest / z.norm(dim=1, keepdim=True)).clamp(max=1)
        progress(step + 1)
    return z


def _gradient(model: Generator, z: Tensor, target: Embedding, distance: Distance) -> tuple[Tensor, Tensor]:
    """The distances of T(z) to the target, [b], and their gradients with respect to z, [b, dim]."""
    z = z.detach().requires_grad_()
    losses = distance.loss(model(z), target)
    (gradient,) = torch.autograd.grad(losses.sum(), [z])
    return losses.detach(), gradient
