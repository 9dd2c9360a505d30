"""Pools and training by a recipe, beside RS-IMLE's published loop."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.training.plain import PlainLoop
from imletriton.commands.gen import generate
from imletriton.data import load_points
from imletriton.recipe import Recipe
from imletriton.system.device import set_up
from imletriton.training.build import build
from imletriton.training.compiling import compile_networks, compiles
from imletriton.training.trainer import Trainer

# Changes to the papers' recipe. Random weights of VGG16 take as long as trained ones.
PAPERS = {
    "data.source": "faces",
    "distance.weights": "random",
    "distance.search": "features",
    "distance.normalize": True,
    "selection.strategy": "vanilla",
}
BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16"
# On a GPU the papers' network is measured; on a CPU its layers up to 64x64 or 32x32, with fewer channels.
SIZES: dict[str, list[dict[str, Any]]] = {
    "cuda": [{}],
    "cpu": [
        {"data.resolution": 64, "generator.width": 128, "generator.blocks": f"{BLOCKS},32x2,64m32"},
        {"data.resolution": 32, "generator.width": 64, "generator.blocks": BLOCKS},
    ],
}
N = {"cpu": 41, "cuda": 100}  # data points
POOL = {"cpu": 128, "cuda": 1024}  # samples drawn for one measurement
UNITS = {"pool": "pool samples", "training": "training images"}  # what is counted in each part


def measured(
    device: torch.device, precision: str = "auto", size: dict[str, Any] | None = None
) -> tuple[Recipe, Tensor, Trainer]:
    """Build what is measured on a device.

    Args:
        device: The device.
        precision: The recipe's train.precision.
        size: The changes to the recipe that set the size of the network; by default the first ones for the device.

    Returns:
        The recipe, the data points (uint8 [n, 3, H, W]) and the trainer.
    """
    set_up(device)  # as `fit` does; the plain loop becomes faster too
    size = SIZES[device.type][0] if size is None else size
    changes = PAPERS | size | {"selection.pool": POOL[device.type], "train.precision": precision}
    recipe = Recipe.load(measure.ROOT / "recipes/dog.toml", changes)
    points = load_points("faces", recipe.data.resolution)[: N[device.type]]
    return recipe, points, build(recipe, points, device)


def run(device: torch.device, console: Console) -> list[dict[str, Any]]:
    """Measure each size and print tables; return one dictionary for each size, for the JSON file."""
    return [_run(device, size, console) for size in SIZES[device.type]]


def _run(device: torch.device, size: dict[str, Any], console: Console) -> dict[str, Any]:
    """Measure one size and print a table."""
    recipe, points, trainer = measured(device, size=size)
    pool = trainer.pool.size
    if compiles(trainer) and (reason := compile_networks(trainer)):
        console.print(f"Not compiled: {reason}")
    plain = PlainLoop(points, trainer.generator, recipe.train, recipe.distance.projection_dim, device)
    list(trainer.start_epoch())
    plain.select(*plain.draw(len(points)))
    peak = measure.peak_flops(device, torch.bfloat16)

    def epoch() -> None:
        for _ in range(trainer.steps_per_epoch):
            trainer.train_step()

    def draw_pool() -> None:
        list(trainer.pool.draw(0))

    plain_pool = pool // 2  # the plain loop is slow
    works: dict[str, tuple[measure.Work, int]] = {
        "pool": (draw_pool, pool),
        "plain pool": (lambda: plain.draw(plain_pool), plain_pool),
        "training": (epoch, trainer.steps_per_epoch * trainer.batch),  # the last batch is as large as the others
        "plain training": (plain.epoch, len(points)),
    }
    for work, _ in works.values():  # to compile and to warm up
        work()
    times = measure.times({name: lambda k, work=work: work() for name, (work, _) in works.items()}, device, 7)  # type: ignore[misc]
    rate = {name: count / times[name].median for name, (_, count) in works.items()}
    memory = {name: measure.extra_memory(works[name][0], device) for name in works}
    result: dict[str, Any] = {
        "recipe": f"{recipe.data.resolution}x{recipe.data.resolution}, width {trainer.generator.width}, "
        f"batch {recipe.train.batch_size}, n = {len(points)}",
        "precision": "bfloat16" if trainer.uses_bfloat16 else "float32",
        "peak_flops": peak,
    }
    flops = {"pool": sample_flops(trainer), "training": step_flops(trainer)}
    for name in ("pool", "training"):
        result[name] = {
            "per_s": rate[name],
            "plain_per_s": rate[f"plain {name}"],
            "ratio": rate[name] / rate[f"plain {name}"],
            "spread": times[name].spread,
            "share_of_peak": flops[name] * rate[name] / peak,
            "memory": memory[name],
            "plain_memory": memory[f"plain {name}"],
        }
    result["gen_per_s"] = images_written(trainer, device)
    _print(result, console)
    return result


def rows(results: list[dict[str, Any]]) -> list[str]:
    """Format the results of `run` as the rows of the table in benchmarks/README.md."""
    return [
        f"| {result['recipe']}: {unit} | {result[name]['per_s']:.1f} | {result[name]['plain_per_s']:.1f} "
        f"| **{result[name]['ratio']:.2f}** |"
        for result in results
        for name, unit in UNITS.items()
    ]


def sample_flops(trainer: Trainer) -> float:
    """Count the FLOPs of one pool sample: generator and distance."""
    with FlopCounterMode(display=False) as counter:
        trainer.distance.embed(trainer.generator(trainer.pool.latents(0, 1)))
    return float(counter.get_total_flops())


def step_flops(trainer: Trainer) -> float:
    """Count the FLOPs of one training image: the forward and backward pass of generator and distance."""
    with FlopCounterMode(display=False) as counter:
        embedding = trainer.distance.embed(trainer.generator(trainer.pool.latents(0, 1)))
        sum(part.float().square().sum() for part in embedding).backward()  # type: ignore[union-attr]
    return float(counter.get_total_flops())


def images_written(trainer: Trainer, device: torch.device) -> float:
    """Measure how many images per second `gen` writes."""
    n = 64 if device.type == "cpu" else 512
    with tempfile.TemporaryDirectory() as folder:
        trainer.ema.save_pretrained(folder)
        return n / measure.seconds(lambda: generate(folder, n, out=Path(folder) / "gen", device=device), device)


def _print(result: dict[str, Any], console: Console) -> None:
    """Print the results of one size."""
    table = Table("", "per second", "plain loop", "ratio", "of peak", "memory", title=f"End to end: {result['recipe']}")
    for name, unit in UNITS.items():
        row = result[name]
        cells = [
            f"{row['per_s']:.1f}",
            f"{row['plain_per_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['share_of_peak']:.0%}",
        ]
        table.add_row(unit, *cells, f"{row['memory'] / 2**20:.0f} MiB")
    table.add_row("images written by gen", f"{result['gen_per_s']:.1f}")
    console.print(table)
