"""Stage 3 of `make gpu`: a training step and a pool's chunk of the papers' recipe, eager and compiled."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.gpu.items import Bench, Item, Options, Result, row
from benchmarks.gpu.timing import on_device, peak_flops, profiled
from imletriton.distance import LPIPS
from imletriton.distance.feature_ops import unit_features
from imletriton.distance.projection import CountSketch
from imletriton.training.compiling import compile_networks
from imletriton.training.trainer import Trainer

TINY = {"data.resolution": 32, "generator.width": 8, "generator.blocks": "4x1,32m4", "generator.latent_dim": 8}
TINY |= {"generator.mapping_layers": 1, "distance.backbone": "squeeze"}
STEPS, TINY_STEPS = 20, 2
CHUNKS, TINY_CHUNKS = (32, 64, 128), (2, 1)
COPY_BYTES = 2**31  # 2 GiB read and 2 GiB written
# Predicted for an H100 and the papers' recipe: milliseconds a step, and pool samples a second. Nothing was measured.
STEP_MS = {"eager": (22, 35), "compiled": (13, 18), "compiled, with CUDA graphs": (9, 12), "the goal": (4.5, 5.5)}
POOL_PER_S = (2000, 2500)
CEILINGS = {"bfloat16 matmul": 790, "copy": 3000}  # TFLOP/s and GB/s that others measured


def waves(options: Options) -> list[list[list[Item]]]:
    """The ceilings and the eager step in one process, the compiled step in another."""
    eager = [
        Item("ceilings", ceilings, 30),
        Item("eager step", eager_step, 70),
        *(Item(f"pool chunk of {size}", chunk_of(size), 25) for size in (TINY_CHUNKS if options.tiny else CHUNKS)),
        Item("unit_sketch", sketches, 40),
    ]
    compiled = [Item("compiled step", compiled_step, 300)]
    return [[eager + compiled]] if options.tiny else [[eager], [compiled]]


@functools.cache
def trainer_of(device: torch.device, tiny: bool) -> Trainer:
    """Make a trainer by the papers' recipe, with LPIPS by a random VGG16 and random assigned latent codes."""
    from benchmarks.training import comparison  # here, as it needs lpips, which may not be installed

    trainer = comparison.measured(device, size=TINY if tiny else {})[2]
    trainer.assigned.normal_()
    if tiny:
        trainer.pool.chunk = TINY_CHUNKS[-1]
    return trainer


def trainer_for(bench: Bench) -> Trainer:
    """The trainer that the items of a process share."""
    bench.need("torchvision", "lpips")
    return trainer_of(bench.device, bench.tiny)


# -- ceilings ----------------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> Result:
    """Measure the two rates that limit everything: of a large bfloat16 matmul, and of a copy on the device."""
    source = torch.randn((2**20 if bench.tiny else COPY_BYTES) // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = min(measure.seconds(lambda: target.copy_(source), bench.device) for _ in range(10))
    moved = 2 * source.numel() * source.element_size()
    rows = [row("copy on the device, read and written", moved / seconds / 1e9, "GB/s", CEILINGS["copy"])]
    flops = peak_flops(bench.device, bench.tiny)
    rows.append(row("bfloat16 matmul, 8192", flops / 1e12, "TFLOP/s", CEILINGS["bfloat16 matmul"]))
    return {"rows": rows}


# -- steps -------------------------------------------------------------------------------------------------------------


def train(trainer: Trainer, steps: int) -> None:
    """Train for some steps."""
    for _ in range(steps):
        trainer.train_step()


def step_times(bench: Bench, trainer: Trainer) -> tuple[float, float]:
    """Measure the milliseconds of a training step until the device is done, and until the host may continue."""
    steps = TINY_STEPS if bench.tiny else STEPS
    train(trainer, 2 if bench.tiny else 5)
    measure.synchronize(bench.device)
    began = time.perf_counter()
    train(trainer, steps)
    host = time.perf_counter() - began
    measure.synchronize(bench.device)
    return 1e3 * (time.perf_counter() - began) / steps, 1e3 * host / steps


def step_rows(bench: Bench, trainer: Trainer, kind: str, predictions: list[str]) -> list[Result]:
    """Make rows of the step: its time beside each prediction, the host's time, and the share of peak."""
    wall, host = step_times(bench, trainer)
    rows = [
        row(f"step, {kind}" + (f" (predicted: {name})" if name != kind else ""), wall, "ms", STEP_MS[name])
        for name in predictions
    ]
    rows.append(row(f"step, {kind}: host", host, "ms"))
    flops = step_flops(bench) * trainer.batch / (1e-3 * wall)
    rows.append(row(f"step, {kind}: share of peak", 100 * flops / peak_flops(bench.device, bench.tiny), "%", (25, 30)))
    return rows


@functools.cache
def _step_flops(device: torch.device, tiny: bool) -> float:
    from benchmarks.training import comparison

    return comparison.step_flops(trainer_of(device, tiny))


def step_flops(bench: Bench) -> float:
    """The FLOPs of one training image, counted on the eager networks."""
    return _step_flops(bench.device, bench.tiny)


def pool_rate(bench: Bench, trainer: Trainer, size: int) -> float:
    """Measure the samples a second of a pool that is drawn in chunks of a size."""
    trainer.pool.chunk = size

    def work() -> None:
        next(trainer.pool.draw(0))

    for _ in range(3):
        work()
    return size / statistics.median(measure.seconds(work, bench.device) for _ in range(2 if bench.tiny else 8))


def eager_step(bench: Bench) -> Result:
    """Measure the step without compiling: its time, the kernels that take most of it, and its launches."""
    trainer = trainer_for(bench)
    rows = step_rows(bench, trainer, "eager", ["eager"])
    bench.note({"rows": rows})
    return {"rows": rows} | profile_of(bench, trainer, "eager", rows)


def profile_of(bench: Bench, trainer: Trainer, kind: str, rows: list[Result]) -> Result:
    """Profile some steps, and add the number of launches to the rows."""
    steps = TINY_STEPS if bench.tiny else STEPS
    table = profiled(bench, lambda: train(trainer, steps), steps)
    rows.append(row(f"step, {kind}: launches", sum(kernel["calls"] for kernel in table), ""))
    rows.append(row(f"step, {kind}: on the GPU", sum(kernel["us"] for kernel in table) / 1e3, "ms"))
    return {"kernels": table}


def chunk_of(size: int) -> Callable[[Bench], Result]:
    """Make an item that measures the pool in eager chunks of a size."""

    def work(bench: Bench) -> Result:
        rate = pool_rate(bench, trainer_for(bench), size)
        return {"rows": [row(f"pool, eager, chunk of {size}", rate, "samples/s")]}

    return work


def sketches(bench: Bench) -> Result:
    """Measure each layer's projection by the kernel and by plain PyTorch, and check that both agree."""
    from imletriton.kernels.unit_sketch import unit_sketch

    trainer, rows = trainer_for(bench), []
    distance, size = trainer.distance, 1 if bench.tiny else 32
    assert isinstance(distance, LPIPS)
    z = torch.randn(size, trainer.assigned.shape[1], device=bench.device)
    with torch.no_grad():
        with trainer.autocast():
            layers = distance._layers(trainer.generator(z))[1]
        for number, (layer, weight) in enumerate(layers):
            sketch = distance.projections[number + 1]
            assert isinstance(sketch, CountSketch)
            ours = functools.partial(unit_sketch, layer, weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim)
            plain = functools.partial(_plain_sketch, layer, weight, sketch)
            difference = (ours() - plain()).abs().max() / plain().abs().max()
            if not difference < 1e-4:
                raise RuntimeError(f"layer {number + 1} differs from plain PyTorch by {difference:.0e}")
            name = f"unit_sketch of layer {number + 1}, {' x '.join(map(str, layer.shape))}"
            times = [on_device(bench, work) for work in (ours, plain)]
            rows.append(row(name, times[0], "us"))
            rows.append(row(f"{name}: in plain PyTorch", times[1], "us"))
            read = layer.numel() * layer.element_size() / times[0] / 1e3
            rows.append(row(f"{name}: rate of reading", read, "GB/s"))
            bench.note({"rows": rows})
    return {"rows": rows}


def _plain_sketch(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
    projected: Tensor = sketch(unit_features(layer, weight))
    return projected


# -- compiled ----------------------------------------------------------------------------------------------------------


def compiled_step(bench: Bench) -> Result:
    """Measure the step and the pool as in a long run: compiled, with CUDA graphs. A rehearsal generates no code."""
    trainer = trainer_for(bench)
    step_flops(bench)  # counted while the networks are eager
    real, rows = torch.compile, list[Result]()
    quick = functools.partial(_compile_quickly, real) if bench.tiny else real
    with patch.object(torch, "compile", quick):
        began = time.perf_counter()
        if reason := compile_networks(trainer):
            raise RuntimeError(f"not compiled: {reason}")
        measure.synchronize(bench.device)
        rows.append(row("time to compile", time.perf_counter() - began, "s"))
        bench.note({"rows": rows})
        kind = "compiled, with CUDA graphs"
        rows += step_rows(bench, trainer, kind, ["compiled", kind, "the goal"])
        bench.note({"rows": rows})
        rate = pool_rate(bench, trainer, trainer.pool.chunk)
        rows.append(row(f"pool, compiled, chunk of {trainer.pool.chunk}", rate, "samples/s", POOL_PER_S))
        bench.note({"rows": rows})
        if bench.device.type == "cuda":
            for name in ("max_memory_allocated", "max_memory_reserved"):
                rows.append(row(name, getattr(torch.cuda, name)(bench.device) / 2**20, "MiB"))
        return {"rows": rows} | profile_of(bench, trainer, kind, rows)


def _compile_quickly(real: Callable[..., Any], function: Any, **options: Any) -> Any:
    """Call torch.compile with a back end that generates no code, which would take minutes."""
    return real(function, backend="eager")
