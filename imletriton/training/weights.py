"""The weights that a training step changes: the optimizer, the bfloat16 copies and the running average."""

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps for each weight, besides the number of steps


def fused_adamw(
    weights: Sequence[Tensor], learning_rate: Tensor, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Make an AdamW whose state exists before the first step, so that a CUDA graph can record any step.

    Args:
        weights: float32.
        learning_rate: float32 [], read anew in each step.
        betas: Of the two moments.
        weight_decay: Decoupled, as a share of the learning rate.
    """
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
    for weight in weights:
        moments = {key: torch.zeros_like(weight) for key in MOMENTS}
        optimizer.state[weight] = {"step": torch.zeros((), device=weight.device)} | moments
    return optimizer


class BFloat16Copies:
    """Pairs of float32 weights and the bfloat16 copies of them that the network multiplies with.

    Args:
        weights: All weights of the generator, float32.
        working: Those of the network that makes the samples, in the same order; some of them are the same tensors.
    """

    def __init__(self, weights: Sequence[Tensor], working: Sequence[Tensor]) -> None:
        self.weights = weights
        self.pairs = [(weight, copy) for weight, copy in zip(weights, working, strict=True) if weight is not copy]

    @torch.no_grad()
    def write(self) -> None:
        """Round the weights to their copies."""
        if self.pairs:
            torch._foreach_copy_([copy for _, copy in self.pairs], [weight for weight, _ in self.pairs])

    def gradients(self) -> list[Tensor]:
        """The gradients of all weights that have one, in float32; those of the copies are converted first."""
        found = [(weight, gradient) for weight, copy in self.pairs if (gradient := copy.grad) is not None]
        if found:
            wide = [torch.empty_like(weight) for weight, _ in found]
            torch._foreach_copy_(wide, [gradient for _, gradient in found])
            for (weight, _), gradient in zip(found, wide, strict=True):
                weight.grad = gradient
        return [gradient for weight in self.weights if (gradient := weight.grad) is not None]

    def zero_grad(self) -> None:
        """Free the memory of all gradients."""
        for weight in (*self.weights, *(copy for _, copy in self.pairs)):
            weight.grad = None


def move_average(averages: list[Tensor], weights: list[Tensor], rate: Tensor) -> None:
    """Move the average of each weight towards it in one pass: average <- average - rate (average - weight).

    That is a step of gradient descent for |average - weight|^2 / 2, for which PyTorch has a fused kernel: with a weight
    decay of 1, it ascends the "gradient" weight.

    Args:
        averages: float32, changed in place.
        weights: float32, of the same shapes.
        rate: float32 [], 1 - decay.
    """
    torch._fused_sgd_(
        averages,
        weights,
        [],
        lr=rate,
        weight_decay=1.0,
        maximize=True,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        is_first_step=False,
    )
