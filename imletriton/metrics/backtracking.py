"""LPIPS backtracking: how well a generator reconstructs pictures that it was not trained on (Liu et al., ICLR 2021)."""

import math
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor

from imletriton.distance import Distance, as_float
from imletriton.generator import Generator, latent_codes

BATCH = 4  # reconstructions at once: what fits in training fits here
LEARNING_RATE = 0.1  # of the latent codes, whose coordinates are about 1; falls to 0 over the steps


def backtrack(
    model: Generator,
    images: Tensor,
    distance: Distance,
    starts: int = 4,
    steps: int = 300,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Reconstruct images, uint8 [n, 3, H, W]: optimise latent codes from several random starts, and take the best.

    Freezes the model. Returns the distances of the reconstructions, float32 [n], and the reconstructions, uint8
    [n, 3, H, W]. progress is told how many steps are done, of n * starts * steps.
    """
    device = next(model.parameters()).device
    model.requires_grad_(False)
    codes = latent_codes(0, len(images) * starts, model.latent_dim, seed=0, stream=1).to(device)
    targets = repeat(images, "n c h w -> (n starts) c h w", starts=starts)
    found, made, done = [], [], 0
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
            made.append(model.decoder.at_rest(model(z)))
            found.append(distance.loss(as_float(made[-1]), target))
    best = rearrange(torch.cat(found), "(n starts) -> n starts", starts=starts).nan_to_num(torch.inf).min(1)
    chosen = best.indices + starts * torch.arange(len(images), device=device)
    return best.values.cpu(), torch.cat(made)[chosen].cpu()
