"""python -m benchmarks.counts: what a search, a pool and a training step demand of a GPU, counted without one.

The operators that a call runs are counted by a dispatch mode, together with the launches of imletriton's own kernels.
Without a GPU, CPU tensors go through the code that a GPU would run, with Triton's kernels interpreted. Each operator
that computes something is one launch on a GPU; one that needs a value on the host makes the host wait for the GPU.
Where torch.compile is meant to see a whole function, the breaks in its graph are counted too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks import measure
from imletriton import search
from imletriton.data import load_points
from imletriton.kernels.scan import scan_kernel
from imletriton.recipe import Recipe
from imletriton.training.build import build
from imletriton.training.trainer import Trainer

ALLOCATIONS = ("aten::empty", "aten::new_empty")  # prefixes of operators that only allocate memory
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
OURS = "imletriton::"  # the prefix of imletriton's kernels
POINTS = 8  # data points of the training step
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OperatorCounts(TorchDispatchMode):
    """Counts the operators that run while it is entered.

    Args:
        weights: Tensors whose conversions to another dtype are counted apart.
    """

    def __init__(self, weights: list[Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.casts = self.weight_casts = 0
        self._weights = {weight.data_ptr() for weight in weights or []}

    def __enter__(self) -> Self:
        kind = type(scan_kernel)  # of compiled or of interpreted kernels
        run = kind.run

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self.launches[f"{OURS}{kernel.fn.__name__}"] += 1
            with _disable_current_modes():  # a GPU would not do the interpreter's work
                return run(kernel, *args, **kwargs)

        self._patch = patch.object(kind, "run", noted)
        self._patch.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patch.stop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        if name in WAITS or (name.startswith("aten::index") and _indexes_by_mask(args)):
            self.waits[name] += 1
        returns = func._schema.returns
        view = any(returned.alias_info and not returned.alias_info.is_write for returned in returns)
        if not view and not name.startswith(ALLOCATIONS):
            self.launches[name] += 1
        if name == "aten::_to_copy" and result.dtype != args[0].dtype:
            self.casts += 1
            self.weight_casts += args[0].data_ptr() in self._weights
        return result

    def row(self) -> dict[str, Any]:
        """The counts as JSON values."""
        ours = sum(count for name, count in self.launches.items() if name.startswith(OURS))
        return {
            "launches": self.launches.total(),
            "of imletriton's kernels": ours,
            "waits": self.waits.total(),
            "casts": self.casts,
            "casts of weights": self.weight_casts,
            "operators": dict(self.launches.most_common()),
            "waiting operators": dict(self.waits.most_common()),
        }


def _indexes_by_mask(args: tuple[Any, ...]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def count_searches() -> dict[str, dict[str, Any]]:
    """Count `nearest`, and searches of other kinds, as on a GPU."""
    torch.manual_seed(0)
    queries, pool = torch.randn(6, 40, device=DEVICE), torch.randn(50, 40, device=DEVICE)
    searching = torch.tensor([True, False, True, True, False, False], device=DEVICE)
    options: dict[str, dict[str, Any]] = {
        "nearest": {},
        "nearest, some of the queries": {"searching": searching},
        "nearest, with a rejection radius": {"reject_radius": 1.0},
        "the 5 nearest": {"k": 5},
    }
    rows = {}
    with measure.searching_by_kernels():
        for name, arguments in options.items():
            with OperatorCounts() as counts:
                running = search.NearestSearch(queries, **arguments)
                running.update(pool)
                _ = running.sq_distance, running.index
            rows[name] = counts.row()
        reference = search.Prepared(queries)
        prepared = search.Prepared(pool, reference)
        with OperatorCounts() as counts:
            search.nearest(reference, prepared)
        rows["nearest, both sides prepared"] = counts.row()
        with OperatorCounts() as counts:
            _ = search.within(queries, pool, 1.0).count
        rows["within a radius, counted"] = counts.row()
    return rows


def count_variants(problems: int = 400) -> dict[str, int]:
    """Count the variants of each kernel that Triton would build for searches of random sizes. No kernel runs.

    The sizes are those of the property test, which on a GPU searches as often.

    Returns:
        {kernel: the number of its variants}.
    """
    backend, binders = make_backend(GPUTarget("cuda", 90, 32)), dict[str, Any]()
    variants: dict[str, set[str]] = defaultdict(set)

    def noted(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        name = kernel.fn.__name__
        if name not in binders:
            function = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
            binders[name] = create_function_from_signature(function.signature, function.params, backend)
        _, specialization, options = binders[name](*args, **kwargs)
        variants[name].add(str((specialization, options)))

    rng = random.Random(0)
    with patch.object(type(scan_kernel), "run", noted), measure.searching_by_kernels():
        for _ in range(problems):
            n, m, d = rng.randint(1, 9), rng.randint(0, 150), rng.randint(1, 70)
            dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
            both = torch.empty(n + m, d, dtype=dtype, device=DEVICE)
            searching = rng.choice([None, torch.zeros(n, dtype=torch.bool, device=DEVICE)])
            running = search.NearestSearch(both[:n], searching, rng.choice([0.0, 1.0]), rng.choice([1, 1, 1, 3]))
            cut = rng.randint(0, m)
            running.update(both[n : n + cut])
            running.update(both[n + cut :])
            _ = search.within(both[:n], both[n:], 1.0).count
    return {name: len(found) for name, found in sorted(variants.items())}


def count_code() -> dict[str, dict[str, float]]:
    """Count the machine code of the search's matmuls for an H100; see benchmarks.builds."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.builds", "--counts"]
    counts: dict[str, dict[str, float]] = json.loads(subprocess.check_output(command, cwd=measure.ROOT, env=env))
    return counts


def papers_trainer() -> Trainer:
    """A trainer with the papers' network in bfloat16 at 256x256, under LPIPS by a random VGG16, for POINTS pictures."""
    overrides = {"data.source": "faces", "distance.weights": "random", "train.precision": "bfloat16"}
    recipe = Recipe.load(measure.ROOT / "recipes/dog.toml", overrides)
    trainer = build(recipe, load_points("faces", recipe.data.resolution)[:POINTS], DEVICE)
    trainer.assigned.normal_()
    return trainer


def count_step(trainer: Trainer) -> dict[str, Any]:
    """Count one eager training step of a trainer; the first one is left out."""
    trainer.train_step()
    with OperatorCounts(list(trainer.generator.parameters())) as counts:
        trainer.train_step()
    with trainer.autocast():
        return counts.row() | {"graph breaks": graph_breaks(trainer.pair_losses, trainer.batch_index())}


@torch.no_grad()
def count_chunk(trainer: Trainer, samples: int = 2) -> dict[str, Any]:
    """Count what a chunk of a pool computes: the search features of the samples of some latent codes."""
    z = trainer.pool.latents(0, samples)

    def features(z: Tensor) -> Tensor:
        return trainer.distance.features(trainer.working(z))

    with trainer.autocast():
        with OperatorCounts(list(trainer.generator.parameters())) as counts:
            features(z)
        return counts.row() | {"graph breaks": graph_breaks(features, z)}


def graph_breaks(function: Callable[[Tensor], Tensor], argument: Tensor) -> int:
    """Count the places at which torch.compile would leave a function's graph."""
    torch._dynamo.reset()
    explained = torch._dynamo.explain(function)(argument)
    return int(explained.graph_break_count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="where the JSON file goes")
    options = parser.parse_args()
    trainer = papers_trainer()
    rows = count_searches() | {
        "training step, 256x256": count_step(trainer),
        "pool chunk, 256x256": count_chunk(trainer),
    }
    variants, code = count_variants(), count_code()
    print_table(rows, ["launches", "of imletriton's kernels", "waits", "casts", "casts of weights", "graph breaks"])
    print_table(code, list(next(iter(code.values()))))
    print_table({name: {"variants": count} for name, count in variants.items()}, ["variants"])
    result = {"counts": rows, "variants": variants, "machine code, sm_90": code}
    path = measure.write(measure.machine(DEVICE) | result, "counts", options.out)
    print(f"Written to {path}")


def print_table(rows: dict[str, dict[str, Any]], columns: list[str]) -> None:
    """Print rows by name."""
    table = Table("", *columns)
    for name, row in rows.items():
        table.add_row(name, *(str(row.get(column, "")) for column in columns))
    Console(width=None if Console().is_terminal else 150).print(table)


if __name__ == "__main__":
    main()
