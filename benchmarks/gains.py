"""Measure how many times faster each optimisation makes pools and training (python -m benchmarks.gains [--compile]).

Each optimisation is taken away from a trainer of its own, which keeps all others. That trainer and the usual one work
in turns, in one process. A gain above 1 means that the optimisation pays.
"""

import argparse
import gc
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure, training
from imletriton.distance import LPIPS
from imletriton.distance.feature_ops import unit_features
from imletriton.distance.projection import CountSketch
from imletriton.generator import Generator
from imletriton.generator.decoders.vdvae import DecoderBlock, VDVAEDecoder
from imletriton.system.device import in_float32
from imletriton.training.trainer import Trainer


def float32_products(trainer: Trainer) -> None:
    """Compute matmuls and convolutions in float32, with all weights and targets in float32 as well."""
    frozen_weights_in_float32(trainer)
    weights_in_float32(trainer)
    targets_in_float32(trainer)
    trainer.uses_bfloat16 = trainer.pool.uses_bfloat16 = False


def frozen_weights_in_float32(trainer: Trainer) -> None:
    """Hold the frozen weights of LPIPS in float32, so that autocast converts them in every call."""
    trainer.distance.network.float()


def weights_in_float32(trainer: Trainer) -> None:
    """Hold the generator's weights in float32 alone, so that autocast converts them in every call."""
    trainer.working = trainer.pool.generator = trainer.generator
    trainer.copies = []


def targets_in_float32(trainer: Trainer) -> None:
    """Keep the features of the targets in float32."""
    assert trainer.targets
    trainer.targets = tuple(part.float() for part in trainer.targets)


def targets_not_kept(trainer: Trainer) -> None:
    """Compute the features of the targets in each step."""
    trainer.targets = None


def distances_measured_anew(trainer: Trainer) -> None:
    """Measure the distances of a batch after each step, which amounts to those of all data points once an epoch."""
    train_step = trainer.train_step

    def step_and_measure() -> None:
        train_step()
        trainer._measure(torch.arange(trainer.batch, device=trainer.device) % trainer.n)

    trainer.train_step = step_and_measure  # type: ignore[method-assign]


def projected(trainer: Trainer, project: Callable[[Tensor, Tensor, CountSketch], Tensor]) -> None:
    """Project the LPIPS features of each layer by a function of the layer, its weights and the usual projection."""

    def sketches(self: LPIPS, points: Tensor) -> list[Tensor]:
        pixels, layers = self._layers(points)
        first, *rest = self.projections
        return [first(pixels), *(project(*layer, sketch) for layer, sketch in zip(layers, rest, strict=True))]  # type: ignore[arg-type]

    trainer.distance._sketches = MethodType(sketches, trainer.distance)  # type: ignore[method-assign]


def features_stored(trainer: Trainer) -> None:
    """Store the LPIPS features of a layer before they are projected."""
    projected(trainer, lambda layer, weight, sketch: sketch(unit_features(layer, weight)))


def dense_projection(trainer: Trainer) -> None:
    """Project features by dense Gaussian matrices instead of a count sketch; at 256x256 they take 25.6 GB."""
    _, *sketches = trainer.distance.projections
    matrices = {s: torch.randn(s.dim, s.out_dim, device=trainer.device) for s in sketches}
    projected(trainer, lambda layer, weight, sketch: unit_features(layer, weight) @ matrices[sketch])


def mapping_and_styles_in_float32(trainer: Trainer) -> None:
    """Multiply in float32 in the mapping network and in the layer that makes the styles."""
    for module in (trainer.working.mapping, trainer.working.decoder.styles):

        def forward(x: Tensor, forward: Callable[[Tensor], Tensor] = module.forward) -> Tensor:
            with in_float32(x):
                return forward(x)

        module.float().forward = forward


class StylesApart(nn.Module):
    """The styles of a decoder's blocks, by a linear layer for each block.

    Args:
        styles: One linear layer for all blocks.
        blocks: The number of blocks.
    """

    def __init__(self, styles: nn.Linear, blocks: int) -> None:
        super().__init__()
        parts = zip(styles.weight.detach().chunk(blocks), styles.bias.detach().chunk(blocks), strict=True)
        self.parts = nn.ParameterList(nn.Parameter(tensor.clone()) for part in parts for tensor in part)

    def forward(self, w: Tensor) -> Tensor:
        weights, biases = self.parts[::2], self.parts[1::2]
        return torch.cat([F.linear(w, *part) for part in zip(weights, biases, strict=True)], 1)


def styles_apart(trainer: Trainer) -> Trainer:
    """Multiply by the weights of each block's style apart."""
    generator: Generator = trainer.generator
    decoder = generator.decoder
    assert isinstance(decoder, VDVAEDecoder)
    decoder.styles = StylesApart(decoder.styles, len(decoder.blocks))
    parts = trainer.points, generator, trainer.distance, trainer.strategy, trainer.settings
    return Trainer(*parts, trainer.pool.size, trainer.noise, trainer.device)


def upsampled_first(trainer: Trainer) -> None:
    """Upsample at the start of a decoder block instead of after its first convolution."""
    for block in trainer.working.decoder.blocks:

        def branches(
            self: DecoderBlock, x: Tensor, scale: Tensor, shift: Tensor, upsample: Any = block.repeat
        ) -> tuple[Tensor, Tensor]:
            return DecoderBlock.branches(self, upsample(x), scale, shift)

        block.branches = MethodType(branches, block)
        block.repeat = block.upsample = MethodType(lambda self, x: x, block)


def colours_apart(trainer: Trainer) -> None:
    """Compute the last decoder block and the convolution to RGB one after the other instead of jointly."""

    def colours(self: VDVAEDecoder, last: DecoderBlock, normed: Tensor, out: Tensor) -> Tensor:
        x = last.upsample(normed) + last.convs[-1](out)
        return self.to_rgb(torch.addcmul(self.bias, x, self.gain)).float()

    decoder = trainer.working.decoder
    decoder._colours = MethodType(colours, decoder)


CALLS = 21  # with and without each optimisation
# Each optimisation, and what takes it away from a trainer, or returns a trainer without it.
INSTEAD: dict[str, Callable[[Trainer], Trainer | None]] = {
    "bfloat16 products": float32_products,
    "frozen weights held in bfloat16": frozen_weights_in_float32,
    "the generator's weights held in bfloat16": weights_in_float32,
    "mapping and styles in bfloat16": mapping_and_styles_in_float32,
    "styles of all blocks in one matmul": styles_apart,
    "upsampling after the first convolution": upsampled_first,
    "last block joined with the colours": colours_apart,
    "features projected as they are made": features_stored,
    "count sketch instead of a dense matrix": dense_projection,
    "targets' features kept": targets_not_kept,
    "targets' features kept in bfloat16": targets_in_float32,
    "distances from the training losses": distances_measured_anew,
}
# The optimisations that affect only pools or only training.
ONLY = {
    "features projected as they are made": "pool",
    "count sketch instead of a dense matrix": "pool",
    "targets' features kept": "training",
    "targets' features kept in bfloat16": "training",
    "distances from the training losses": "training",
}


def prepared(device: torch.device, compiled: bool, instead: Callable[[Trainer], Trainer | None] | None) -> Trainer:
    """Build a trainer, without an optimisation where a function takes it away, and draw its first pool."""
    _, _, trainer = training.measured(device, "bfloat16")
    if instead:
        trainer = instead(trainer) or trainer
    if compiled and (reason := trainer.compile_networks()):
        raise SystemExit(f"Not compiled: {reason}")
    list(trainer.start_epoch())
    return trainer


def works(trainer: Trainer) -> dict[str, Callable[[], None]]:
    """What is measured of a trainer: a chunk of a pool, and a training step."""
    z = trainer.pool.latents(0, trainer.pool.chunk)

    def chunk() -> None:
        with trainer.autocast(), torch.no_grad():
            trainer.pool.make_features(z)

    return {"pool": chunk, "training": lambda: trainer.train_step()}


def run(device: torch.device, compiled: bool = False, chosen: Iterable[str] = INSTEAD) -> dict[str, dict[str, float]]:
    """Measure optimisations.

    Args:
        device: The device to measure on.
        compiled: Whether to measure compiled trainers.
        chosen: The names of the optimisations; by default all of them.

    Returns:
        {optimisation: {"pool" or "training": how many times faster it is with the optimisation than without}}.
    """
    usual = works(prepared(device, compiled, None))
    gains: dict[str, dict[str, float]] = {}
    for name in chosen:
        without = works(prepared(device, compiled, INSTEAD[name]))
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
    parser.add_argument("--compile", action="store_true", help="compile what is measured, as `fit` does on a GPU")
    parser.add_argument("--only", action="append", choices=INSTEAD, help="an optimisation; can be given several times")
    options = parser.parse_args()
    about = measure.machine(torch.device(options.device))
    gains = run(torch.device(options.device), options.compile, options.only or INSTEAD)
    measure.write(about | {"gains": gains}, "compiled-gains" if options.compile else "gains", options.out)
    print("\n".join(table(gains)))


if __name__ == "__main__":
    main()
