"""Measure how many times faster each optimisation makes pools and training (python -m benchmarks.gains).

Each optimisation is switched off by itself while all others stay on. The recipe runs with and without it in turns, in
one process. A gain above 1 means that the optimisation pays.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure, training
from imletriton.distance import lpips
from imletriton.distance.feature_ops import unit_features
from imletriton.distance.projection import CountSketch
from imletriton.generator import model
from imletriton.generator.decoders import vdvae
from imletriton.trainer import Trainer


@contextlib.contextmanager
def float32_products(trainer: Trainer) -> Iterator[None]:
    """Compute matmuls and convolutions in float32, with frozen weights in float32 as well."""
    of_trainer, of_pool = (patch.object(part, "uses_bfloat16", False) for part in (trainer, trainer.pool))
    with frozen_weights_in_float32(trainer), of_trainer, of_pool:
        yield


@contextlib.contextmanager
def frozen_weights_in_float32(trainer: Trainer) -> Iterator[None]:
    """Hold the frozen weights of LPIPS in float32, so that autocast converts them in every call."""
    trainer.distance.network.float()
    yield
    trainer.distance.use_bfloat16()


@contextlib.contextmanager
def dense_projection(trainer: Trainer) -> Iterator[None]:
    """Project features by dense Gaussian matrices instead of a count sketch."""
    matrices = {
        sketch: torch.randn(sketch.dim, sketch.out_dim, device=trainer.device)
        for sketch in trainer.distance.projections
    }

    def projected(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
        return unit_features(layer, weight) @ matrices[sketch]

    with patch.object(lpips, "sketched_features", projected):
        yield


@contextlib.contextmanager
def distances_measured_anew(trainer: Trainer) -> Iterator[None]:
    """Measure the distances of a batch after each step, which amounts to those of all data points once an epoch."""
    train_step = trainer.train_step

    def step_and_measure() -> None:
        train_step()
        trainer._measure(torch.arange(trainer.batch, device=trainer.device) % trainer.n)

    with patch.object(trainer, "train_step", step_and_measure):
        yield


@contextlib.contextmanager
def mapping_and_styles_cast(trainer: Trainer) -> Iterator[None]:
    """Let autocast convert the small weights of the mapping network and of the styles to bfloat16."""
    in_model, in_decoder = (patch.object(m, "in_float32", lambda x: contextlib.nullcontext()) for m in (model, vdvae))
    with in_model, in_decoder:
        yield


def features_stored(trainer: Trainer) -> AbstractContextManager[Any]:
    """Store the LPIPS features of a layer before they are projected."""

    def stored(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
        return sketch(unit_features(layer, weight))

    return patch.object(lpips, "sketched_features", stored)


@contextlib.contextmanager
def upsampled_first(trainer: Trainer) -> Iterator[None]:
    """Upsample at the start of a decoder block instead of after its first convolution."""
    block = vdvae.DecoderBlock

    def branches(self: vdvae.DecoderBlock, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        normed, out = self.adain(upsample(self, x), w)
        for conv in self.convs[:-1]:
            out = F.gelu(conv(out))
        return normed, out

    upsample = block.upsample
    with patch.object(block, "branches", branches), patch.object(block, "upsample", lambda self, x: x):
        yield


def colours_apart(trainer: Trainer) -> AbstractContextManager[Any]:
    """Compute the last decoder block and the convolution to RGB one after the other instead of jointly."""

    def colours(self: vdvae.VDVAEDecoder, last: vdvae.DecoderBlock, normed: Tensor, out: Tensor) -> Tensor:
        x = last.upsample(normed) + last.convs[-1](out)
        return self.to_rgb(torch.addcmul(self.bias, x, self.gain)).float()

    return patch.object(vdvae.VDVAEDecoder, "_colours", colours)


CALLS = 21  # with and without each optimisation
# Each optimisation, and the context that switches it off.
INSTEAD: dict[str, Callable[[Trainer], AbstractContextManager[Any]]] = {
    "bfloat16 products": float32_products,
    "frozen weights held in bfloat16": frozen_weights_in_float32,
    "mapping and styles in float32": mapping_and_styles_cast,
    "upsampling after the first convolution": upsampled_first,
    "last block joined with the colours": colours_apart,
    "features projected as they are made": features_stored,
    "count sketch instead of a dense matrix": dense_projection,
    "targets' features kept": lambda t: patch.object(t, "targets", None),
    "distances from the training losses": distances_measured_anew,
}
# The optimisations that affect only pools or only training.
ONLY = {
    "features projected as they are made": "pool",
    "count sketch instead of a dense matrix": "pool",
    "targets' features kept": "training",
    "distances from the training losses": "training",
}


def run(device: torch.device) -> dict[str, dict[str, float]]:
    """Measure all optimisations.

    Args:
        device: The device to measure on.

    Returns:
        {optimisation: {"pool" or "training": how many times faster it is with the optimisation than without}}.
    """
    _, _, trainer = training.measured(device, "bfloat16")
    list(trainer.start_epoch())

    def chunk() -> None:
        with trainer.autocast(), torch.no_grad():
            trainer.pool.make_features(trainer.pool.latents[: trainer.pool.chunk])

    works = {"pool": chunk, "training": lambda: trainer.train_step()}
    gains: dict[str, dict[str, float]] = {}
    for name, instead in INSTEAD.items():

        def without(work: Callable[[], None], instead: Callable[..., Any] = instead) -> None:
            with instead(trainer):
                work()

        gains[name] = {}
        for part in [ONLY[name]] if name in ONLY else works:
            work = works[part]
            without(work)  # to warm up
            gains[name][part] = measure.gain(work, lambda work=work: without(work), device, CALLS)  # type: ignore[misc]
        print(f"{name}: " + ", ".join(f"{part} {gain:.2f}" for part, gain in gains[name].items()), flush=True)
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
    options = parser.parse_args()
    about = measure.machine(torch.device(options.device))
    gains = run(torch.device(options.device))
    measure.write(about | {"gains": gains}, "gains", options.out)
    print("\n".join(table(gains)))


if __name__ == "__main__":
    main()
