"""Compare methods on truth that training never saw, with several random seeds each (python -m benchmarks.quality).

The built-in faces can be drawn without end: 100 are trained on, 5,000 others are the truth. So can points in the plane,
from a mixture of twelve normal distributions. Of a folder of pictures, a share is kept from training to be the truth;
without one, it is the pictures themselves. A method is a change to recipes/faces.toml, or to the selection of
recipes/toy2d.toml. It is judged twice: after as many images as the first method trains on, and after as much time of
the processor as the first method takes for them.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from benchmarks import measure
from benchmarks.candidates import TRAINERS
from benchmarks.quality_figures import (
    against_training,
    against_truth,
    compared,
    distance_apart,
    octaves,
    path_length,
    with_faults,
)
from benchmarks.quality_methods import (
    BASE,
    BEST,
    FACES,
    FLOOR_SEED,
    IN_PLANE,
    METHODS,
    PICTURES,
    RESOLUTIONS,
    ROOT,
    TRUTH,
    Source,
    recipe_of,
)
from benchmarks.quality_pictures import blind_page, pairs, sheets, side_by_side
from benchmarks.trained_network import is_installed, trained_features
from imletriton.commands.fit import fit
from imletriton.generator import Generator
from imletriton.training.trainer import Trainer

RESULTS = ROOT / "benchmarks/results"
IMAGES = 38_400  # that the first method trains on
SAMPLES, SAMPLE_SEED = 5000, 1
# The columns of the table: the key of a run, its title and the number of decimals.
COLUMNS = {
    "frechet": ("Frechet", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "coverage": ("coverage", 3),
    "near": ("near a picture", 3),
    "reached": ("pictures reached", 2),
    "second": ("second finest octave", 2),
    "sharpness": ("finest octave", 2),
    "authenticity": ("authenticity", 2),
}
# The same, in the features of a network that was trained on ImageNet.
TRAINED_COLUMNS = {
    "trained_frechet": ("trained: Frechet", 1),
    "trained_precision": ("precision", 3),
    "trained_recall": ("recall", 3),
    "trained_coverage": ("coverage", 3),
}


def judge(samples: Tensor, training: Tensor, truth: Tensor) -> dict[str, float]:
    """All figures of samples; those of the spectrum, which points in the plane have none of, over the truth's."""
    figures = against_truth(samples, truth) | against_training(samples, training)
    if samples.ndim == 2:
        return figures
    energy = [ours / theirs for ours, theirs in zip(octaves(samples), octaves(truth), strict=True)]
    spectrum = {f"octave_{k}": value for k, value in enumerate(energy)} | {"sharpness": energy[-1]}
    return figures | spectrum


def judge_in_trained_features(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """The figures of TRAINED_COLUMNS, and density.

    Args:
        samples: uint8 [m, 3, S, S].
        truth: The features of the truth, float32 [n, 1280].
    """
    return {f"trained_{name}": value for name, value in compared(trained_features(samples), truth).items()}


def one_run(
    method: str,
    resolution: int,
    seed: int,
    images: int,
    budget: str,
    folder: Path,
    data: Source = FACES,
    trained: bool = False,
) -> dict[str, Any]:
    """Train once and judge the result.

    Args:
        method: A key of METHODS.
        resolution: The side of the images.
        seed: The random seed of training.
        images: How many images it trains on.
        budget: What is equal in all methods, "images" or "time".
        folder: Holds the truth, and gets samples for a sheet.
        data: What to train on.
        trained: Whether to judge in the features of the trained network too.

    Returns:
        One run for the JSON file; `seconds` are those of the processor, in training.
    """
    torch.set_num_threads(1)
    batch = recipe_of(method, resolution, seed, 1, data).train.batch_size
    recipe = recipe_of(method, resolution, seed, max(1, round(images / batch)), data)
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        with ExitStack() as changed:
            changed.enter_context(patch("imletriton.training.build.Trainer", TRAINERS.get(method, Trainer)))
            if not data.is_built_in:
                points = data.training(resolution)
                changed.enter_context(patch("imletriton.commands.fit.load_points", lambda *_, **__: points))
            run = fit(recipe, Path(place) / "run", device="cpu")
        seconds = time.process_time() - began
        model = Generator.from_pretrained(run.path)
    samples = model.sample(SAMPLES, seed=SAMPLE_SEED)
    np.save(folder / f"{method}-{resolution}-{seed}-{budget}.npy", samples[:64].numpy())
    truth = torch.from_numpy(np.load(folder / f"truth-{resolution}.npy"))
    figures = judge(samples, data.training(resolution), truth)
    if not data.in_plane:
        figures |= {"path_length": path_length(model)}
    if trained:
        figures |= judge_in_trained_features(samples, torch.from_numpy(np.load(folder / _features_of(resolution))))
    setting = {"method": method, "resolution": resolution, "seed": seed, "budget": budget, "images": images}
    setting["date"] = date.today().isoformat()
    return setting | {"seconds": round(seconds, 1)} | figures


def floor(
    resolution: int, truth: Tensor, data: Source = FACES, features: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """The same figures of the training pictures themselves, and of as many other faces as the truth has.

    Args:
        resolution: The side of the images.
        truth: What to compare with.
        data: What is trained on.
        features: Those of the truth by the trained network, where it judges too.
    """
    training = data.training(resolution)
    copies = against_truth(training, truth) | {"sample_to_training": 0.0}
    if features is not None:
        copies |= judge_in_trained_features(training, features)
    if data.is_folder:
        return {"training pictures": copies, "distances": {"training": distance_apart(truth, training)}}
    others = data.draw(resolution, TRUTH, FLOOR_SEED)
    found = {"training pictures": copies, "others": judge(others, training, truth)}
    if features is not None:
        found["others"] |= judge_in_trained_features(others, features)
        for name, images in with_faults(others).items():
            found[f"others, {name}"] = against_truth(images, truth) | judge_in_trained_features(images, features)
    return found | {"distances": {"training": distance_apart(truth, training), "others": distance_apart(truth, others)}}


def rows(runs: list[dict[str, Any]], budget: str, trained: bool = False) -> list[str]:
    """The rows of a Markdown table: mean and deviation over the seeds, and a paired test of the Frechet distance."""
    second = [f"octave_{int(math.log2(run['resolution'])) - 2}" for run in runs]
    runs = [run | ({"second": run[key]} if key in run else {}) for run, key in zip(runs, second, strict=True)]
    shown, tested_by = (TRAINED_COLUMNS, "trained_frechet") if trained else (COLUMNS, "frechet")
    columns = {key: column for key, column in shown.items() if all(key in run for run in runs)}
    lines = [f"| equal {budget} | " + " | ".join(title for title, _ in columns.values()) + " | p (Frechet) |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    of = {(r["method"], r["seed"]): r for r in runs if r["budget"] == budget or r["method"] == BASE}
    for method in dict.fromkeys(method for method in METHODS if any(key[0] == method for key in of)):
        seeds = sorted(seed for name, seed in of if name == method)
        cells = [f"{method} ({len(seeds)} seed{'s' * (len(seeds) > 1)})"]
        for key, (_, digits) in columns.items():
            values = [of[method, seed][key] for seed in seeds]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        both = [(of[method, s][tested_by], of[BASE, s][tested_by]) for s in seeds if (BASE, s) in of]
        tested = method != BASE and len(both) > 1
        cells.append(f"{ttest_rel(*zip(*both, strict=True)).pvalue:.3f}" if tested else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def floor_rows(floors: dict[str, dict[str, float]]) -> list[str]:
    """The rows of a Markdown table: what the trained network and the random ones say of pictures that are known."""
    columns = {key: COLUMNS[key] for key in ("frechet", "precision", "recall", "coverage")} | TRAINED_COLUMNS
    lines = ["| | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in floors.items():
        if columns.keys() <= figures.keys():
            cells = [f"{figures[key]:.{digits}f}" for key, (_, digits) in columns.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run what is missing, write the JSON file and the sheets, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--method", action="append", choices=METHODS, help="can be given several times; by default all")
    parser.add_argument("--source", default="faces", help="faces, toy2d, or a folder of pictures")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="how many faces or points are trained on")
    parser.add_argument("--holdout", type=float, default=0.0, help="the share of a folder's pictures that is the truth")
    parser.add_argument("--resolution", type=int, default=32, choices=RESOLUTIONS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES, help="that the first method trains on")
    parser.add_argument("--budget", action="append", choices=["images", "time"], help="by default both")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument(
        "--trained",
        action="store_true",
        help="judge in the features of a network trained on ImageNet too; the results get a file of their own",
    )
    parser.add_argument("--blind", type=Path, help="also write a page there that shows pairs of sheets without names")
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for the results; by default benchmarks/results, or runs/quality for a folder",
    )
    options = parser.parse_args()
    data = Source(options.source, options.holdout, options.pictures)
    out = options.out or (ROOT / "runs/quality" if data.is_folder else RESULTS)
    chosen = options.method or (IN_PLANE if data.in_plane else METHODS)
    resolution, methods = options.resolution, list(dict.fromkeys([BASE, *chosen]))
    if options.trained and not is_installed():
        parser.error("--trained needs an extra of this project: uv sync --extra quality installs it.")
    if options.trained and data.in_plane:
        parser.error("--trained judges pictures, and toy2d has none. Leave out one of the two.")
    name = data.name if data.in_plane else f"{data.name}-{resolution}"
    name += f"-{data.pictures}" * (data.pictures != PICTURES and not data.is_folder)
    name += "-trained" * options.trained
    path = out / f"quality-{name}.json"
    samples = out / "quality-samples"  # git ignores it
    if data != FACES or options.trained:
        samples = samples / name
    samples.mkdir(parents=True, exist_ok=True)
    truth = data.truth(resolution)
    np.save(samples / f"truth-{resolution}.npy", truth.numpy())
    kept = json.loads(path.read_text()) if path.exists() else {}
    if (kept.get("trained"), kept.get("holdout", 0.0)) != (options.images, data.holdout):
        kept = {}  # of another comparison
    runs = kept.get("runs", [])
    about = measure.machine(torch.device("cpu")) | {"trained": options.images, "holdout": data.holdout}
    features = trained_features(truth) if options.trained else None
    if features is not None:
        np.save(samples / _features_of(resolution), features.numpy())
    floors = kept.get("floor") or floor(resolution, truth, data, features)
    failures = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for budget in options.budget or ["images", "time"]:
            jobs = {}
            for method in methods if budget == "images" else methods[1:]:
                for seed in range(options.seeds):
                    done = [r for r in runs if (r["method"], r["seed"], r["budget"]) == (method, seed, budget)]
                    if not done:
                        images = options.images if budget == "images" else _in_equal_time(runs, method, options.images)
                        wanted = (method, resolution, seed, images, budget, samples, data, options.trained)
                        job = pool.submit(one_run, *wanted)
                        jobs[job] = f"{method}, seed {seed}"
            for job in as_completed(jobs):
                if error := job.exception():  # the other runs go on, and are kept
                    print(f"{jobs[job]} failed: {error!r}", flush=True)
                    failures += 1
                    continue
                runs.append(job.result())
                print(json.dumps(runs[-1]), flush=True)
                runs.sort(key=lambda run: (run["budget"], list(METHODS).index(run["method"]), run["seed"]))
                path.write_text(json.dumps(about | {"floor": floors, "runs": runs}, indent=1) + "\n")
            if not data.in_plane:
                _draw_sheets(samples, path, resolution, budget, options.seeds, options.blind)
            for trained in [False, True][: 1 + options.trained]:
                print("\n".join(rows(runs, budget, trained)))
    print("\n".join(floor_rows(floors)) if options.trained else json.dumps(floors, indent=1))
    print(f"Written to {path}")
    if failures:
        raise SystemExit(f"{failures} runs failed.")


def _features_of(resolution: int) -> str:
    """The file with the truth's features by the trained network, which all runs share."""
    return f"truth-{resolution}-trained.npy"


def _draw_sheets(samples: Path, path: Path, resolution: int, budget: str, seeds: int, blind: Path | None) -> None:
    """Draw the sheets of all methods whose samples are there, beside the JSON file at `path`."""
    pictures = sheets(samples, resolution, budget)
    side_by_side(pictures).save(path.with_name(f"{path.stem}-{budget}.png"), optimize=True)
    if {BASE, BEST[resolution]} <= pictures.keys():
        several = pairs(samples, resolution, budget, seeds)
        several.save(path.with_name(f"{path.stem}-{budget}-pairs.png"), optimize=True)
    if blind:
        blind.write_text(blind_page(pictures))


def _in_equal_time(runs: list[dict[str, Any]], method: str, images: int) -> int:
    """How many images a method trains on in the time that the first method takes for `images`.

    Compares the runs of the same seed and the same day, as those of another day may be another machine's.
    """
    seconds = {
        name: {(r["seed"], r["date"]): r["seconds"] for r in runs if r["method"] == name and r["budget"] == "images"}
        for name in (BASE, method)
    }
    both = seconds[BASE].keys() & seconds[method].keys()
    base, own = (statistics.fmean(seconds[name][key] for key in both) for name in (BASE, method))
    return round(images * base / own)


if __name__ == "__main__":
    main()
