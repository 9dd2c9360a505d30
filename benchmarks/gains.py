"""Measure how many times faster each optimisation makes pools and training (python -m benchmarks.gains).

Each optimisation is taken away from a trainer of its own, which keeps all others. That trainer and the usual one work
in turns, in one process. A gain above 1 means that the optimisation pays.
"""

import argparse
import gc
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.training.comparison import measured
from imletriton.distance.projection import CountSketch
from imletriton.generator.decoders.vdvae import DecoderBlock
from imletriton.system.device import in_float32
from imletriton.training.trainer import Trainer

CALLS = 21  # with and without each optimisation


def mapping_and_styles_in_float32(trainer: Trainer) -> None:
    """Multiply in float32 in the mapping network and in the layer that makes the styles."""
    working: Any = trainer.working
    for module in (working.mapping, working.decoder.styles):

        def forward(x: Tensor, forward: Callable[[Tensor], Tensor] = module.forward) -> Tensor:
            with in_float32(x):
                return forward(x)

        module.float().forward = forward


def upsampled_first(trainer: Trainer) -> None:
    """Upsample at the start of a decoder block instead of after its first convolution."""
    working: Any = trainer.working
    for block in working.decoder.blocks:

        def branches(
            self: DecoderBlock, x: Tensor, scale: Tensor, shift: Tensor, upsample: Any = block.repeat
        ) -> tuple[Tensor, Tensor]:
            return DecoderBlock.branches(self, upsample(x), scale, shift)

        block.branches = MethodType(branches, block)
        block.repeat = block.upsample = MethodType(lambda self, x: x, block)


def dense_projection(trainer: Trainer) -> None:
    """Project features by dense Gaussian matrices instead of count sketches; at 256x256 they would take 25.6 GB."""
    distance = trainer.distance
    sketches = [cast(CountSketch, sketch) for sketch in distance.projections]
    matrices = [torch.randn(sketch.dim, sketch.out_dim, device=trainer.device) for sketch in sketches]

    def features(points: Tensor) -> Tensor:
        parts = zip(distance.embed(points), matrices, strict=True)
        return F.normalize(torch.stack([part @ matrix for part, matrix in parts]).float().sum(0))

    distance.features = features  # type: ignore[method-assign, assignment]


def targets_not_kept(trainer: Trainer) -> None:
    """Compute the features of the targets in each step."""
    trainer.targets = None


def distances_measured_anew(trainer: Trainer) -> None:
    """Measure the distances of a batch after each step, which amounts to those of all data points once an epoch."""
    train_step = trainer.train_step

    def step_and_measure() -> None:
        train_step()
        trainer.measure(torch.arange(trainer.batch, device=trainer.device) % trainer.n)

    trainer.train_step = step_and_measure  # type: ignore[method-assign]


# Each optimisation, and what takes it away from a trainer.
INSTEAD: dict[str, Callable[[Trainer], None]] = {
    "mapping and styles in bfloat16": mapping_and_styles_in_float32,
    "upsampling after the first convolution": upsampled_first,
    "count sketch instead of a dense matrix": dense_projection,
    "targets' features kept": targets_not_kept,
    "distances from the training losses": distances_measured_anew,
}
BFLOAT16 = "bfloat16 products"  # which the recipe takes away
NAMES = [BFLOAT16, *INSTEAD]
# The optimisations that affect only pools or only training.
ONLY = {
    "count sketch instead of a dense matrix": "pool",
    "targets' features kept": "training",
    "distances from the training losses": "training",
}


def works(device: torch.device, without: str = "") -> dict[str, measure.Work]:
    """Build a trainer, on request without an optimisation, and draw its first pool.

    Returns:
        What is measured of it: "pool", a chunk of a pool, and "training", a training step.
    """
    _, _, trainer = measured(device, "float32" if without == BFLOAT16 else "bfloat16")
    if without in INSTEAD:
        INSTEAD[without](trainer)
    list(trainer.start_epoch())
    return {"pool": lambda: next(trainer.pool.draw(0)), "training": lambda: trainer.train_step()}


def run(device: torch.device, chosen: Iterable[str] = NAMES) -> dict[str, dict[str, float]]:
    """Measure optimisations.

    Args:
        device: The device to measure on.
        chosen: The names of the optimisations; by default all of them.

    Returns:
        {optimisation: {"pool" or "training": how many times faster it is with the optimisation than without}}.
    """
    usual = works(device)
    gains: dict[str, dict[str, float]] = {}
    for name in chosen:
        without = works(device, name)
        gains[name] = {}
        for part in [ONLY[name]] if name in ONLY else usual:
            usual[part](), without[part]()  # to warm up
            gains[name][part] = measure.gain(usual[part], without[part], device, CALLS)
        print(f"{name}: " + ", ".join(f"{part} {gain:.2f}" for part, gain in gains[name].items()), flush=True)
        del without
        gc.collect()  # a trainer refers to itself
    return gains


def table(gains: dict[str, dict[str, float]]) -> list[str]:
    """Format the result of `run` as the rows of the table in benchmarks/README.md."""
    rows = []
    for name, by_part in gains.items():
        pool, training_step = (f"{by_part[part]:.2f}" if part in by_part else "" for part in ("pool", "training"))
        rows.append(f"| {name} | {pool} | {training_step} |")
    return rows


def main() -> None:
    """Measure all optimisations, print the table and write a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=__doc__)
    measure.add_arguments(parser)
    parser.add_argument("--only", action="append", choices=NAMES, help="an optimisation; can be given several times")
    options = parser.parse_args()
    about = measure.machine(torch.device(options.device))
    gains = run(torch.device(options.device), options.only or NAMES)
    measure.write(about | {"gains": gains}, "gains", options.out)
    print("\n".join(table(gains)))


if __name__ == "__main__":
    main()
