"""Compare methods by pictures that training never saw, with several random seeds each (python -m benchmarks.quality).

The built-in faces can be drawn without end: 100 are trained on, and 5,000 others are the truth. From a folder of
pictures, a share is held out as the truth; without one, the truth is the pictures themselves. Every method is judged
twice: after as many images as the first method trains on, and after as much processor time as it takes for them.
"""

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.quality.judge import is_installed, trained_features
from benchmarks.quality.methods import BASE, BEST, FACES, METHODS, RESOLUTIONS, Source
from benchmarks.quality.pictures import pairs, sheets, side_by_side
from benchmarks.quality.run import floor, one_run, truth_files
from benchmarks.quality.tables import floor_rows, rows

IMAGES = 38_400  # that the first method trains on


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    made.add_argument("--method", action="append", choices=METHODS, help="can be given several times; by default all")
    made.add_argument("--source", default="faces", help="faces, or a folder of pictures")
    made.add_argument("--holdout", type=float, default=0.0, help="the share of a folder's pictures that is the truth")
    made.add_argument("--resolution", type=int, default=32, choices=RESOLUTIONS)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--images", type=int, default=IMAGES, help="that the first method trains on")
    made.add_argument("--budget", action="append", choices=["images", "time"], help="by default both")
    made.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    trained_help = "let a network trained on ImageNet judge as well; the results get a file of their own"
    made.add_argument("--trained", action="store_true", help=trained_help)
    out_help = "the folder for the results; by default benchmarks/results, or runs/quality for a folder of pictures"
    made.add_argument("--out", type=Path, help=out_help)
    return made


def main() -> None:
    """Make the runs that are missing, write the JSON file and the sheets, and print the tables."""
    options = parser().parse_args()
    if options.trained and not is_installed():
        parser().error("--trained needs an extra of this project: `uv sync --extra quality` installs it.")
    data, resolution = Source(options.source, options.holdout), options.resolution
    methods = list(dict.fromkeys([BASE, *(options.method or METHODS)]))
    out = options.out or (measure.ROOT / "runs/quality" if data.is_folder else measure.RESULTS)
    name = f"{data.name}-{resolution}" + "-trained" * options.trained
    path = out / f"quality-{name}.json"
    samples = out / "quality-samples" / (name if data != FACES or options.trained else "")  # git ignores it
    samples.mkdir(parents=True, exist_ok=True)

    kept = json.loads(path.read_text()) if path.exists() else {}
    if (kept.get("trained"), kept.get("holdout", 0.0)) != (options.images, data.holdout):
        kept = {}  # of another comparison
    about = measure.machine(torch.device("cpu")) | {"trained": options.images, "holdout": data.holdout}
    truth = data.truth(resolution)
    features = trained_features(truth) if options.trained else None
    for file, values in zip(truth_files(samples, resolution), (truth, features), strict=True):
        if values is not None:
            np.save(file, values.numpy())
    floors = kept.get("floor") or floor(resolution, truth, data, features)
    runs: list[dict[str, Any]] = kept.get("runs", [])
    failures = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for budget in options.budget or ["images", "time"]:
            jobs = {}
            done = {(run["method"], run["seed"]) for run in runs if run["budget"] == budget}
            compared = methods if budget == "images" else methods[1:]  # the first one takes its own time
            for method, seed in [(method, seed) for method in compared for seed in range(options.seeds)]:
                if (method, seed) not in done:
                    images = options.images if budget == "images" else _in_equal_time(runs, method, options.images)
                    wanted = (method, resolution, seed, images, budget, samples, data, options.trained)
                    jobs[pool.submit(one_run, *wanted)] = f"{method}, seed {seed}"
            for job in as_completed(jobs):
                if error := job.exception():  # the other runs go on, and are kept
                    print(f"{jobs[job]} failed: {error!r}", flush=True)
                    failures += 1
                    continue
                runs.append(job.result())
                print(json.dumps(runs[-1]), flush=True)
                runs.sort(key=lambda run: (run["budget"], list(METHODS).index(run["method"]), run["seed"]))
                path.write_text(json.dumps(about | {"floor": floors, "runs": runs}, indent=1) + "\n")
            _draw_sheets(samples, path, resolution, budget, options.seeds)
            for trained in [False, True][: 1 + options.trained]:
                print("\n".join(rows(runs, budget, trained)))
    print("\n".join(floor_rows(floors)) if options.trained else json.dumps(floors, indent=1))
    print(f"Written to {path}")
    if failures:
        raise SystemExit(f"{failures} runs failed.")


def _draw_sheets(samples: Path, path: Path, resolution: int, budget: str, seeds: int) -> None:
    """Draw the sheets of all methods whose samples are there, beside the JSON file at `path`."""
    pictures = sheets(samples, resolution, budget)
    side_by_side(pictures).save(path.with_name(f"{path.stem}-{budget}.png"), optimize=True)
    if {BASE, BEST[resolution]} <= pictures.keys():
        several = pairs(samples, resolution, budget, seeds)
        several.save(path.with_name(f"{path.stem}-{budget}-pairs.png"), optimize=True)


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
