"""Optimisers, averages and augmentations that were tried."""

import math
from typing import Any

import torch
from torch import Tensor

from imletriton.distance import as_float
from imletriton.generator.mappings.mlp import MLPMapping
from imletriton.training.trainer import Trainer

CODE, SHIFT, TINT = 6, 2, 0.2  # of Augmented


class Muon(Trainer):
    """Steps of equal size in all directions for the matrices and convolutions (Muon); AdamW for the rest."""

    def __init__(self, *arguments: Any, rate: float) -> None:
        super().__init__(*arguments)
        self.rate = rate
        self.matrices = [w for w in self.weights if w.ndim > 1 and min(w.shape[0], w[0].numel()) >= 16]
        chosen = {id(w) for w in self.matrices}
        self.momenta = [torch.zeros_like(w) for w in self.matrices]
        group = self.optimizer.param_groups[0]
        group["params"] = [w for w in group["params"] if id(w) not in chosen]

    def _update(self, my_losses: Tensor) -> None:
        self._gradients()
        rate = self.rate * float(self.learning_rate) / self.settings.learning_rate
        for weight, momentum in zip(self.matrices, self.momenta, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.05)
            direction = weight.grad.lerp(momentum, 0.95).flatten(1)
            step = _orthogonal(direction) * max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
            with torch.no_grad():
                weight.add_(step.view(weight.shape), alpha=-rate)
        super()._update(my_losses)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about, by five Newton-Schulz steps with Muon's coefficients."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


class FadingRate(Trainer):
    """Lets the learning rate fall to zero over the last share of the steps."""

    def __init__(self, *arguments: Any, share: float) -> None:
        super().__init__(*arguments)
        self.share, self.full = share, self.settings

    def train_step(self) -> None:
        left = (1 - self.step / self.full.iterations) / self.share
        self.settings = self.full.model_copy(update={"learning_rate": self.full.learning_rate * min(1.0, left)})
        super().train_step()


class ScheduleFree(Trainer):
    """Schedule-free AdamW (Defazio et al., 2024): the averaged weights are the mean of all steps, without a decay.

    Gradients are those at 0.1 z + 0.9 x, where z makes the steps and x is their mean. The first moment is off
    (`train.betas`), as this mean takes its place.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fast = [weight.detach().clone() for weight in self.weights]  # z; the weights themselves are in between

    @torch.no_grad()
    def _update(self, my_losses: Tensor) -> None:
        torch._foreach_copy_(self.weights, self.fast)
        self.ema_rate.fill_(1 / (self.step + 1))
        super()._update(my_losses)
        torch._foreach_copy_(self.fast, self.weights)
        torch._foreach_lerp_(self.weights, self.averages, 0.9)
        self._write_copies()


class Augmented(Trainer):
    """Trains on changed pictures too, and tells the generator how they were changed (after EDM, Karras et al., 2022).

    Half of a batch is mirrored, shifted by up to 2 pixels and tinted. The change is a code in the place of the last 6
    values of the latent code, 0 where nothing is changed. Pools are drawn with the code 0. In the end, the weights of
    these values become 0, so that a finished model draws with no change whatever its latent codes are.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        latents, latents_at = self.pool.latents, self.pool.latents_at
        self.pool.latents = lambda start, stop: _without_code(latents(start, stop))  # type: ignore[method-assign]
        self.pool.latents_at = lambda index: _without_code(latents_at(index))  # type: ignore[method-assign]

    def _losses(self, index: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(self.step)
        code = torch.rand(len(index), CODE, generator=rng) * 2 - 1
        code[:, 0] = code[:, 0].sign()
        code[:, 1:3] = (code[:, 1:3] * (SHIFT + 0.5)).round() / SHIFT
        code *= (torch.rand(len(index), 1, generator=rng) < 0.5).float()
        changed = torch.stack([_change(x, c) for x, c in zip(as_float(self.points[index]), code, strict=True)])
        z = self.assigned[index].clone()
        z[:, -CODE:] = code
        return self.distance.loss(self.working(z), changed)

    def train_step(self) -> None:
        super().train_step()
        if self.step == self.settings.iterations:
            assert isinstance(self.ema.mapping, MLPMapping)
            first = self.ema.mapping.get_submodule("1").weight
            assert isinstance(first, Tensor)
            first[:, -CODE:] = 0
            first *= math.sqrt(first.shape[1] / (first.shape[1] - CODE))  # as the mapping divides z by its length


def _without_code(z: Tensor) -> Tensor:
    z = z.clone()
    z[:, -CODE:] = 0
    return z


def _change(image: Tensor, code: Tensor) -> Tensor:
    """Mirror, shift and tint an image, float32 [3, H, W]; what a shift uncovers repeats the edge."""
    image = image.flip(2) if code[0] > 0 else image
    down, right = (int(x) for x in (code[1:3] * SHIFT).round())
    rows = (torch.arange(image.shape[1]) - down).clamp(0, image.shape[1] - 1)
    columns = (torch.arange(image.shape[2]) - right).clamp(0, image.shape[2] - 1)
    image = image[:, rows][:, :, columns]
    return ((image + 1) * (1 + TINT * code[3:, None, None]) - 1).clamp(-1, 1)
