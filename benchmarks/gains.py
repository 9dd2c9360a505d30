"""python -m benchmarks.gains: what each optimisation gains, by running the same recipe with all the others.

Each is taken away by itself; both ways run in turns in one process. Above 1: it pays.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
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
    of_trainer, of_pool = (patch.object(part, "uses_bfloat16", False) for part in (trainer, trainer.pool))
    with frozen_weights_in_float32(trainer), of_trainer, of_pool:
        yield


@contextlib.contextmanager
def frozen_weights_in_float32(trainer: Trainer) -> Iterator[None]:
    trainer.distance.network.float()
    yield
    trainer.distance.use_bfloat16()


@contextlib.contextmanager
def dense_projection(trainer: Trainer) -> Iterator[None]:
    matrices = {s: torch.randn(s.dim, s.out_dim, device=trainer.device) for s in trainer.distance.projections}
    with patch.object(lpips, "sketched_features", lambda x, w, s: unit_features(x, w) @ matrices[s]):
        yield


@contextlib.contextmanager
def distances_measured_anew(trainer: Trainer) -> Iterator[None]:
    """Of all data points once an epoch, so of a batch a step."""
    step = trainer.train_step

    def and_measure() -> None:
        step()
        trainer._measure(torch.arange(trainer.batch, device=trainer.device) % trainer.n)

    with patch.object(trainer, "train_step", and_measure):
        yield


@contextlib.contextmanager
def mapping_and_styles_cast(trainer: Trainer) -> Iterator[None]:
    in_model, in_decoder = (patch.object(m, "in_float32", lambda x: contextlib.nullcontext()) for m in (model, vdvae))
    with in_model, in_decoder:
        yield


def features_stored(trainer: Trainer) -> AbstractContextManager[Any]:
    def stored(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
        return sketch(unit_features(layer, weight))

    return patch.object(lpips, "sketched_features", stored)


@contextlib.contextmanager
def upsampled_first(trainer: Trainer) -> Iterator[None]:
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
    def colours(self: vdvae.VDVAEDecoder, last: vdvae.DecoderBlock, normed: Tensor, out: Tensor) -> Tensor:
        x = last.upsample(normed) + last.convs[-1](out)
        return self.to_rgb(torch.addcmul(self.bias, x, self.gain)).float()

    return patch.object(vdvae.VDVAEDecoder, "_colours", colours)


CALLS = 21  # of each way
# What is done instead of each.
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
# Those that touch one of the two alone.
ONLY = {
    "features projected as they are made": "pool",
    "count sketch instead of a dense matrix": "pool",
    "targets' features kept": "training",
    "distances from the training losses": "training",
}


def run(device: torch.device) -> dict[str, dict[str, float]]:
    """For each optimisation, how many times faster pool and training are with it than without."""
    _, _, trainer = training.measured(device, "bfloat16")
    list(trainer.start_epoch())

    def chunk() -> None:
        with trainer.autocast(), torch.no_grad():
            trainer.pool.make_features(trainer.pool.latents[: trainer.pool.chunk])

    works = {"pool": chunk, "training": lambda: trainer.train_step()}
    found: dict[str, dict[str, float]] = {}
    for name, instead in INSTEAD.items():

        def without(work: Callable[[], None], instead: Callable[..., Any] = instead) -> None:
            with instead(trainer):
                work()

        found[name] = {}
        for what in [ONLY[name]] if name in ONLY else works:
            work = works[what]
            without(work)  # to warm up
            found[name][what] = measure.gain(work, lambda work=work: without(work), device, CALLS)  # type: ignore[misc]
        print(f"{name}: " + ", ".join(f"{what} {gain:.2f}" for what, gain in found[name].items()), flush=True)
    return found


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """The rows of benchmarks/README.md."""
    rows = (
        [f"{gains[what]:.2f}" if what in gains else "" for what in ("pool", "training")] for gains in found.values()
    )
    return [f"| {name} | {pool} | {step} |" for name, (pool, step) in zip(found, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the JSON file goes")
    options = parser.parse_args()
    about = measure.machine(torch.device(options.device))
    found = run(torch.device(options.device))
    measure.write(about | {"gains": found}, "gains", options.out)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
