"""LPIPS backtracking: how well a generator reconstructs images that it was not trained on (Liu et al., ICLR 2021)."""

import math
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

from imletriton.distance import Distance, as_float
from imletriton.generator import Generator, latent_codes

BATCH = 4  # reconstructions optimised at once; needs no more memory than a training step with this batch size
LEARNING_RATE = 0.1  # for the latent codes, whose coordinates are about 1; decays to 0 along a cosine


def backtrack(
    model: Generator,
    images: Tensor,
    distance: Distance,
    starts: int = 4,
    steps: int = 300,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Reconstruct images by optimising latent codes z to minimise d(T(z), image).

    For each image, Adam starts from several random latent codes, and the best of the reconstructions is kept.

    Args:
        model: The generator T. Its weights are frozen by this call.
        images: uint8 [n, 3, H, W].
        distance: The distance d.
        starts: The number of random latent codes for each image.
        steps: The number of optimisation steps for each latent code.
        progress: Called with the number of steps done so far, out of n * starts * steps.

    Returns:
        The distances between images and reconstructions, float32 [n], and the reconstructions, uint8 [n, 3, H, W], both
        on the CPU.
    """
    device = next(model.parameters()).device
    model.requires_grad_(False)
    codes = latent_codes(0, len(images) * starts, model.latent_dim, seed=0, stream=1).to(device)
    targets = repeat(images, "n c h w -> (n starts) c h w", starts=starts)
    distances, reconstructions = [], []
    progress(done := 0)
    for first in range(0, len(codes), BATCH):
        target = distance.embed(targets[first : first + BATCH].to(device))
        z = codes[first : first + BATCH].clone().requires_grad_()
        optimizer = torch.optim.Adam([z])
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            (z.grad,) = torch.autograd.grad(distance.loss(model(z), target).sum(), [z])
            optimizer.step()
            progress(done := done + len(z))
        with torch.no_grad():
            reconstructions.append(model.decoder.at_rest(model(z)))
            distances.append(distance.loss(as_float(reconstructions[-1]), target))
    by_image = rearrange(torch.cat(distances), "(n starts) -> n starts", starts=starts)
    best = by_image.nan_to_num(torch.inf).min(1)
    best_index = best.indices + starts * torch.arange(len(images), device=device)
    return best.values.cpu(), torch.cat(reconstructions)[best_index].cpu()
