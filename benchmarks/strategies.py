"""Compare the selection strategies, with several random seeds each (python -m benchmarks.strategies toy2d faces).

Every run is an ordinary `fit` of the recipe with the same number of steps. Random samples of its averaged (EMA)
generator are judged, as a user gets them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from benchmarks import measure
from imletriton.commands.fit import fit
from imletriton.data import load_points
from imletriton.generator import Generator
from imletriton.metrics import frechet_distance
from imletriton.metrics.random_features import random_features
from imletriton.recipe import Recipe
from imletriton.search import nearest
from imletriton.training.build import make_distance

# The staleness of the adaptive strategies equals the `refresh` of the others, so that all draw about as many pools.
STRATEGIES: dict[str, dict[str, Any]] = {
    "vanilla": {"strategy": "vanilla", "refresh": 10},
    "adaptive": {"strategy": "adaptive", "staleness": 10},
    "rejection": {"strategy": "rejection", "refresh": 10, "epsilon": "auto"},
    "adaptive-rejection": {"strategy": "adaptive-rejection", "staleness": 10, "epsilon": "auto"},
}
STEPS = {"toy2d": 3000, "faces": 2400}
FACES = 40  # fewer than exist, so that each one is trained on as often as in a long run
SAMPLES, SAMPLE_SEED = 5000, 1
# The columns of the table: the key of a run, its title and the number of decimals.
COLUMNS = {
    "near": ("near a data point", 3),
    "distance": ("distance to the data", 4),
    "reached": ("data points reached", 3),
    "smallest_share": ("smallest share", 4),
    "misaligned_latents": ("misaligned latents", 3),
    "misaligned_distances": ("misaligned distances", 3),
    "frechet": ("Frechet", 4),
    "draws": ("pools drawn", 0),
}


def judge(model: Generator, points: Tensor, recipe: Recipe) -> dict[str, float]:
    """Measure how close random samples are to the data, in the space of search features without normalisation.

    Args:
        model: The generator.
        points: The data points, [n, ...].
        recipe: The recipe of the run.

    Returns:
        The measures that the table shows, and the median distance.
    """
    settings = recipe.distance.model_copy(update={"normalize": False, "projection_dim": 10**6})
    distance = make_distance(settings, tuple(points.shape[1:]), seed=0)
    samples = model.sample(SAMPLES, seed=SAMPLE_SEED)
    data, queries = (torch.cat([distance.features(part) for part in x.split(250)]) for x in (points, samples))
    data_distance = torch.cdist(data, data).fill_diagonal_(torch.inf).amin(1)
    near_radius = float(data_distance.mean()) / 2
    neighbours = nearest(queries, data)
    sample_distance = neighbours.sq_distance.sqrt()
    share = neighbours.index[sample_distance < near_radius].bincount(minlength=len(data)) / SAMPLES
    result = {
        "near": float((sample_distance < near_radius).float().mean()),
        "distance": float(sample_distance.mean()),
        "distance_median": float(sample_distance.median()),
        "reached": float((share > 0).float().mean()),
        "smallest_share": float(share.min()),
    }
    if points.ndim == 4:
        result["frechet"] = frechet_distance(random_features(points), random_features(samples))
    return result


def some_faces(folder: Path) -> Path:
    """Write the first FACES of the built-in faces into a new folder, and return the folder."""
    folder.mkdir()
    for k, face in enumerate(load_points("faces", 32)[:FACES]):
        Image.fromarray(rearrange(face, "c h w -> h w c").numpy()).save(folder / f"{k:03d}.png")
    return folder


def one_run(data: str, strategy: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once and judge the result.

    Args:
        data: "toy2d" or "faces".
        strategy: A key of STRATEGIES.
        seed: The random seed of training.
        steps: The number of training steps.

    Returns:
        One run for the JSON file: its setting, what `judge` measures, and means of what was logged in its second half.
    """
    overrides = {f"selection.{k}": v for k, v in STRATEGIES[strategy].items()}
    overrides |= {"train.seed": seed, "train.iterations": steps}
    overrides |= {"log.samples_every": steps, "log.checkpoint_every": steps}
    with tempfile.TemporaryDirectory() as folder:
        if data == "faces":
            overrides["data.source"] = str(some_faces(Path(folder) / "faces"))
        recipe = Recipe.load(measure.ROOT / f"recipes/{data}.toml", overrides)
        points = load_points(recipe.data.source, recipe.data.resolution)
        start = time.perf_counter()
        run = fit(recipe, Path(folder) / "run", device="cpu")
        minutes = (time.perf_counter() - start) / 60
        log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
        state = json.loads((run.checkpoints[-1] / "trainer.json").read_text())
        model = Generator.from_pretrained(run.path)
    late = [line for line in log if line["step"] > steps / 2 and "nearest" in line]
    means = {k: statistics.fmean(line[k] for line in late if k in line) for k in late[-1] if k != "step"}
    judged = judge(model, points, recipe)
    keys = ["misaligned_latents", "misaligned_distances", "misaligned_theory", "nearest", "random", "rejected_share"]
    logged = {k: means[k] for k in [*keys, "epsilon"] if k in means}
    setting = {"data": data, "strategy": strategy, "seed": seed, "steps": steps, "minutes": round(minutes, 2)}
    return setting | {"draws": state["draws"], "relaxed": state["relaxed"]} | judged | logged


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of a Markdown table: mean and standard deviation over the seeds of each strategy."""
    columns = {k: v for k, v in COLUMNS.items() if any(k in run for run in runs)}
    yield "| strategy | " + " | ".join(title for title, _ in columns.values()) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for strategy in dict.fromkeys(run["strategy"] for run in runs):
        cells = []
        for key, (_, digits) in columns.items():
            values = [run[key] for run in runs if run["strategy"] == strategy]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}")
        yield f"| {strategy} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is missing, write the JSON files and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("data", nargs="+", choices=STEPS, help="the recipes to run")
    parser.add_argument("--seeds", type=int, default=5, help="the number of random seeds for each strategy")
    parser.add_argument("--steps", type=int, help="the number of training steps; by default it depends on the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="the number of runs at a time, each with one thread")
    strategy_help = "the strategy to run; can be given several times; by default all"
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help=strategy_help)
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="the folder for the JSON files")
    options = parser.parse_args()
    for data in options.data:
        steps = options.steps or STEPS[data]
        path = options.out / f"strategies-{data}.json"
        about = measure.machine(torch.device("cpu"))
        kept = json.loads(path.read_text())["runs"] if path.exists() else []
        runs = [run for run in kept if run["steps"] == steps]
        done = {(run["strategy"], run["seed"]) for run in runs}
        wanted = [(strategy, seed) for seed in range(options.seeds) for strategy in options.strategy or STRATEGIES]
        with ProcessPoolExecutor(options.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            missing = [(strategy, seed) for strategy, seed in wanted if (strategy, seed) not in done]
            jobs = [pool.submit(one_run, data, strategy, seed, steps) for strategy, seed in missing]
            for job in as_completed(jobs):
                runs.append(job.result())
                print(json.dumps(runs[-1]), flush=True)
                order = list(STRATEGIES)
                runs.sort(key=lambda run: (order.index(run["strategy"]), run["seed"]))
                path.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
        print("\n".join(table(runs)), f"\nWritten to {path}")


if __name__ == "__main__":
    main()
