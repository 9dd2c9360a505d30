"""python -m benchmarks.precision: does training in bfloat16 end where float32 ends?

The demo's faces, under LPIPS by a random SqueezeNet, several seeds for each precision; every run is the usual trainer.
What counts is the loss at the end beside the spread between seeds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from imletriton.data import load_points
from imletriton.recipe import Recipe
from imletriton.training.build import build
from imletriton.training.trainer import StepDone

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 400, 50
LPIPS = {"distance.kind": "lpips", "distance.backbone": "squeeze", "distance.weights": "random"}
PRECISIONS = ("float32", "bfloat16")


def one_run(precision: str, seed: int, steps: int, every: int = EVERY) -> list[float]:
    """Mean training loss of each `every` steps."""
    overrides = {"train.seed": seed, "train.precision": precision, "train.iterations": steps}
    recipe = Recipe.load(ROOT / "recipes/faces.toml", LPIPS | overrides)
    trainer = build(recipe, load_points("faces", recipe.data.resolution), torch.device("cpu"))
    steps_done = (event for event in trainer.loop() if isinstance(event, StepDone))
    return [trainer.take_loss() or 0.0 for event in steps_done if event.step % every == 0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision-faces.json")
    options = parser.parse_args()
    curves: dict[str, list[list[float]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(options.seeds):
        for precision, found in curves.items():
            found.append(one_run(precision, seed, options.steps))
            print(f"{precision}, seed {seed}: {found[-1][-1]:.5f}", flush=True)
    result: dict[str, Any] = measure.machine(torch.device("cpu")) | {"every": EVERY, "curves": curves}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for precision, found in curves.items():
        ends = [losses[-1] for losses in found]
        print(f"{precision}: {statistics.mean(ends):.5f} ± {statistics.stdev(ends):.5f}")


if __name__ == "__main__":
    main()
