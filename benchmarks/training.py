"""A recipe end to end, beside RS-IMLE's loop as published: pool, training, checkpoint, samples to disk."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.plain import PlainLoop
from imletriton.build import build
from imletriton.commands.generate import generate
from imletriton.data import load_points
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import save_checkpoint
from imletriton.system.device import keep_freed_memory
from imletriton.trainer import Trainer

ROOT = Path(__file__).parents[1]
# The papers' recipe; without a GPU, its network up to 64x64 or 32x32, narrower. Random weights cost what trained do.
PAPERS = {
    "data.source": "faces",
    "distance.weights": "random",
    "distance.search": "features",
    "distance.normalize": True,
    "selection.strategy": "vanilla",
}
BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16"
SIZES: dict[str, list[dict[str, Any]]] = {
    "cuda": [{}],
    "cpu": [
        {"data.resolution": 64, "generator.width": 128, "generator.blocks": f"{BLOCKS},32x2,64m32"},
        {"data.resolution": 32, "generator.width": 64, "generator.blocks": BLOCKS},
    ],
}
N = {"cpu": 41, "cuda": 100}
POOL = {"cpu": 128, "cuda": 1024}  # samples drawn for one measurement


def measured(
    device: torch.device, precision: str = "auto", size: dict[str, Any] | None = None
) -> tuple[Recipe, Tensor, Trainer]:
    """What is measured on a device: recipe, data points and trainer; by default of the device's first size."""
    if device.type == "cpu":
        keep_freed_memory()  # as `fit` does; the plain loop gains by it too
    size = SIZES[device.type][0] if size is None else size
    changes = PAPERS | size | {"selection.pool": POOL[device.type], "train.precision": precision}
    recipe = Recipe.load(ROOT / "recipes/dog.toml", changes)
    points = load_points("faces", recipe.data.resolution)[: N[device.type]]
    return recipe, points, build(recipe, points, device)


def run(device: torch.device, console: Console) -> list[dict[str, Any]]:
    """Measure each size, and print tables; the rows as JSON values."""
    return [_run(device, size, console) for size in SIZES[device.type]]


def _run(device: torch.device, size: dict[str, Any], console: Console) -> dict[str, Any]:
    recipe, points, trainer = measured(device, size=size)
    pool = trainer.pool.size
    if trainer.compiles and (why := trainer.compile_networks()):
        console.print(f"Not compiled: {why}")
    plain = PlainLoop(points, trainer.generator, recipe.train, recipe.distance.projection_dim, device)
    list(trainer.start_epoch())
    plain.select(*plain.draw(len(points)))
    peak = measure.peak_flops(device, torch.bfloat16)

    def epoch() -> None:
        for _ in range(trainer.steps_per_epoch):
            trainer.train_step()

    def drawn() -> None:
        list(trainer.pool.draw(0))

    plain_pool = pool // 2  # the plain loop is slow
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "pool": (drawn, pool),
        "plain pool": (lambda: plain.draw(plain_pool), plain_pool),
        "training": (epoch, trainer.steps_per_epoch * trainer.batch),  # the last batch is filled up
        "plain training": (plain.epoch, len(points)),
    }
    for work, _ in works.values():  # to compile and to warm up
        work()
    taken = measure.times({name: lambda k, work=work: work() for name, (work, _) in works.items()}, device, 7)  # type: ignore[misc]
    rate = {name: count / taken[name].median for name, (_, count) in works.items()}
    memory = {name: measure.extra_memory(works[name][0], device) for name in works}
    found: dict[str, Any] = {
        "recipe": f"{recipe.data.resolution}x{recipe.data.resolution}, width {recipe.generator.width}, "
        f"batch {recipe.train.batch_size}, n = {len(points)}",
        "precision": "bfloat16" if trainer.uses_bfloat16 else "float32",
        "peak_flops": peak,
        "stages": stages(trainer, points, device),
    }
    flops = {"pool": sample_flops(trainer), "training": step_flops(trainer)}
    for name in ("pool", "training"):
        found[name] = {
            "per_s": rate[name],
            "plain_per_s": rate[f"plain {name}"],
            "ratio": rate[name] / rate[f"plain {name}"],
            "spread": taken[name].spread,
            "share_of_peak": flops[name] * rate[name] / peak,
            "memory": memory[name],
            "plain_memory": memory[f"plain {name}"],
        }
    found |= writing(trainer, device)
    _print(found, console)
    return found


def rows(found: list[dict[str, Any]]) -> list[str]:
    """The rows of README's table of speeds."""
    what = {"pool": "pool samples", "training": "training images"}
    return [
        f"| {size['recipe']}: {what[name]} | {size[name]['per_s']:.1f} | {size[name]['plain_per_s']:.1f} "
        f"| **{size[name]['ratio']:.2f}** |"
        for size in found
        for name in what
    ]


def stages(trainer: Trainer, points: Tensor, device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds a sample that each stage takes by itself."""
    z = trainer.pool.latents[: trainer.pool.chunk]
    index = torch.arange(trainer.batch, device=device) % len(points)
    with trainer.autocast():
        with torch.no_grad():
            images = trainer.generator(z)
            pool: dict[str, Callable[[int], Any]] = {
                "generator": lambda k: trainer.generator(z),
                "features": lambda k: trainer.distance.features(images),
                "search": lambda k: trainer.pool.nearest(trainer.features),
            }
            times = measure.times(pool, device)
        made = {k: 1e3 * t.median / (len(trainer.pool.features) if k == "search" else len(z)) for k, t in times.items()}
        latents = trainer.assigned[index]
        samples = trainer.generator(latents).detach().requires_grad_()
        target = tuple(t[index] for t in trainer.targets) if trainer.targets else trainer.points[index]

        def forward_backward(k: int) -> None:
            trainer.generator(latents).sum().backward()

        def loss(k: int) -> None:
            trainer.distance.loss(samples, target).sum().backward()

        times = measure.times(
            {"generator": forward_backward, "distance": loss, "step": lambda k: trainer.train_step()}, device
        )
    step = {k: 1e3 * t.median / trainer.batch for k, t in times.items()}
    step["optimizer and rest"] = step["step"] - step["generator"] - step["distance"]
    return {"pool": made, "training": step}


def sample_flops(trainer: Trainer) -> float:
    """Of one pool sample: generator and distance."""
    with FlopCounterMode(display=False) as counter:
        trainer.distance.embed(trainer.generator(trainer.pool.latents[:1]))
    return float(counter.get_total_flops())


def step_flops(trainer: Trainer) -> float:
    """Of one training image: forward and backward of generator and distance."""
    with FlopCounterMode(display=False) as counter:
        embedding = trainer.distance.embed(trainer.generator(trainer.pool.latents[:1]))
        sum(part.float().square().sum() for part in embedding).backward()  # type: ignore[union-attr]
    return float(counter.get_total_flops())


def writing(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """Seconds a checkpoint takes, and samples a second that `gen` writes."""
    with tempfile.TemporaryDirectory() as folder:
        tensors, state = trainer.state()
        seconds = measure.seconds(lambda: save_checkpoint(Path(folder), 1, trainer.ema, tensors, state, keep=1), device)
        n = 64 if device.type == "cpu" else 512
        generated = measure.seconds(lambda: generate(Path(folder), n, device=device), device)
    return {"checkpoint_s": seconds, "gen_per_s": n / generated}


def _print(found: dict[str, Any], console: Console) -> None:
    table = Table("", "a second", "plain loop", "ratio", "of peak", "memory", title=f"End to end: {found['recipe']}")
    for name, what in (("pool", "pool samples"), ("training", "training images")):
        row = found[name]
        cells = [
            f"{row['per_s']:.1f}",
            f"{row['plain_per_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['share_of_peak']:.0%}",
        ]
        table.add_row(what, *cells, f"{row['memory'] / 2**20:.0f} MiB")
    table.add_row("images by gen", f"{found['gen_per_s']:.1f}")
    console.print(table)
    for name, parts in found["stages"].items():
        console.print(f"{name}, ms a sample: " + ", ".join(f"{k} {v:.2f}" for k, v in parts.items()))
    console.print(f"checkpoint {found['checkpoint_s']:.2f} s")
