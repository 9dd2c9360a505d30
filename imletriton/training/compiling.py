"""torch.compile and CUDA graphs: the same training, faster, after minutes of compiling."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from imletriton.system.device import recorded
from imletriton.training.state import unchanged
from imletriton.training.trainer import Trainer

LONG = 10_000  # steps from which compiling, which takes minutes, is worth it on a GPU


def compiles(trainer: Trainer) -> bool:
    """Whether the settings ask for `compile_networks`."""
    if trainer.settings.compile != "auto":
        return trainer.settings.compile
    return trainer.device.type == "cuda" and trainer.settings.iterations >= LONG


def uses_graphs(trainer: Trainer) -> bool:
    """Whether compiling also records CUDA graphs: with one process only, as messages of others arrive at any time."""
    return trainer.device.type == "cuda" and trainer.group.size == 1


def compiled(
    function: Callable[[Tensor], Tensor], device: torch.device, graphs: bool = False
) -> Callable[[Tensor], Tensor]:
    """Compile a function of a trainer's networks, on request as CUDA graphs of its own."""
    products = device.type == "cuda"  # 1x1 convolutions as matmuls; on a CPU, convolutions are faster
    return torch.compile(function, options={"conv_1x1_as_mm": products, "triton.cudagraphs": graphs})


def compile_networks(trainer: Trainer) -> str | None:
    """Compile the networks of training steps and of the pool's chunks, and record CUDA graphs.

    Returns:
        None, or the reason why that failed; training then goes on without.
    """
    pool, graphs = trainer.pool, uses_graphs(trainer)
    trainer.losses = compiled(trainer.pair_losses, trainer.device)
    pool.replace_features(lambda function: compiled(function, trainer.device, graphs))
    try:
        with unchanged(trainer):
            # Where memory runs out: the pool makes do with smaller chunks, and a step that needs too much will say so.
            with contextlib.suppress(torch.OutOfMemoryError):
                _prepare_steps(trainer)
            with contextlib.suppress(torch.OutOfMemoryError):
                pool.warm_up()
    except RuntimeError as error:
        trainer.losses, trainer.advance = trainer.pair_losses, trainer.step_on_device
        pool.replace_features(None)
        return str(error).strip().splitlines()[0]
    return None


def _prepare_steps(trainer: Trainer) -> None:
    """Run once what steps have compiled, and record the CUDA graph of a step."""
    with trainer.autocast():  # without the other processes, which may fail to compile
        trainer.losses(trainer.index[trainer.group.share(trainer.batch)]).sum().backward()
    if uses_graphs(trainer):
        trainer.optimizer.param_groups[0]["capturable"] = True  # as every fused optimizer is; recording asks for it
        trainer.advance = recorded(trainer.step_on_device, trainer.device)
