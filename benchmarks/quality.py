"""Compare methods on truth that training never saw, with several random seeds each (python -m benchmarks.quality).

The built-in faces can be drawn without end: 100 are trained on, 5,000 others are the truth. Of a folder of pictures, a
share is kept from training to be the truth; without one, it is the pictures themselves. A method is a change to
recipes/faces.toml. It is judged twice: after as many images as the first method trains on, and after as much time of
the processor as the first method takes for them.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from base64 import b64encode
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from scipy.stats import ttest_rel
from torch import Tensor

from benchmarks import measure
from benchmarks.candidates import TRAINERS
from benchmarks.quality_figures import against_training, against_truth, octaves, path_length, pixel_distance
from imletriton.commands.fit import fit
from imletriton.data import held_out, load_points
from imletriton.data.faces import faces
from imletriton.generator import Generator
from imletriton.plotting.grids import image_grid, titled
from imletriton.recipe import Recipe
from imletriton.trainer import Trainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
IMAGES = 38_400  # that the first method trains on
TRUTH, SAMPLES = 5000, 5000
TRUTH_SEED, FLOOR_SEED, SAMPLE_SEED = 1001, 1002, 1  # of the faces; training has others
BLOCKS = {32: "4x2,8m4,8x2,16m8,16x1,32m16", 64: "4x2,8m4,8x2,16m8,16x1,32m16,64m32"}
METHODS: dict[str, dict[str, Any]] = {  # the first is what the others are compared with
    "rejection": {"selection.strategy": "rejection", "selection.epsilon": "auto", "selection.refresh": 10},
    "vanilla": {"selection.strategy": "vanilla", "selection.refresh": 10},
    "adaptive": {"selection.strategy": "adaptive", "selection.staleness": 10},
    "adaptive-rejection": {
        "selection.strategy": "adaptive-rejection",
        "selection.epsilon": "auto",
        "selection.staleness": 10,
    },
}
BASE = next(iter(METHODS))
VARIANTS: dict[str, dict[str, Any]] = {  # changes to the first method
    "refresh 30": {"selection.refresh": 30},
    "pool 40n": {"selection.pool": "40n"},
    "batch 8": {"train.batch_size": 8},
    "learning rate doubled": {"train.learning_rate": 6e-3},
    "16 latent dimensions": {"generator.latent_dim": 16},
    "width 48": {"generator.width": 48, "generator.bottleneck": 0.7},
    "mirrored": {"data.mirror": True},
    "bands": {"distance.kind": "bands"},
    "bands, batch 8": {"distance.kind": "bands", "train.batch_size": 8},
    "rejection, calibrated": {"train.calibrate": True},
    "calibrated": {
        "distance.kind": "bands",
        "generator.start": "style",
        "generator.upsampling": "bilinear",
        "train.batch_size": 8,
        "train.calibrate": True,
    },
}
METHODS |= {name: METHODS[BASE] | changes for name, changes in VARIANTS.items()}
# Changes to OWN. Those that candidates.py has a trainer for change that, and nothing else by themselves.
OWN = "calibrated"
CANDIDATES: dict[str, dict[str, Any]] = {name: {} for name in TRAINERS} | {
    "calibrated, refresh 5, pool 5n": {"selection.refresh": 5, "selection.pool": "5n"},
    "calibrated, refresh 20": {"selection.refresh": 20},
    "calibrated, batch 16": {"train.batch_size": 16},
    "not calibrated": {"train.calibrate": None},
    "constant start": {"generator.start": "constant"},
    "nearest upsampling": {"generator.upsampling": "nearest"},
    "papers' decoder": {"generator.start": "constant", "generator.upsampling": "nearest"},
    "papers' decoder, twice the energies": {"generator.start": "constant", "generator.upsampling": "nearest"},
    "first bands": {"generator.start": "constant", "generator.upsampling": "nearest", "train.calibrate": None},
    "recursive mapping": {"generator.mapping": "recursive"},
    "half the learning rate": {"train.learning_rate": 1.5e-3},
    "batch 4, bands": {"train.batch_size": 4},
    "slower average of squares": {"train.betas": [0.9, 0.99]},
    "mirrored, bands": {"data.mirror": True},
    "width 48, bands": {"generator.width": 48, "generator.bottleneck": 0.7},
    "16 latent dimensions, bands": {"generator.latent_dim": 16},
    "adaptive-rejection, bands": METHODS["adaptive-rejection"] | {"selection.refresh": None},
    "vanilla, bands": METHODS["vanilla"] | {"selection.epsilon": None},
}
for name, changes in CANDIDATES.items():  # None leaves out what OWN has
    METHODS[name] = {key: value for key, value in (METHODS[OWN] | changes).items() if value is not None}
# The columns of the table: the key of a run, its title and the number of decimals.
COLUMNS = {
    "frechet": ("Frechet", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "density": ("density", 2),
    "coverage": ("coverage", 3),
    "truth_to_sample": ("truth to sample", 4),
    "near": ("near a picture", 3),
    "reached": ("pictures reached", 2),
    "authenticity": ("authenticity", 3),
    "sharpness": ("finest octave", 2),
    "path_length": ("path length", 2),
    "seconds": ("seconds", 0),
}


class Source(NamedTuple):
    """What is trained on: the built-in faces, or a folder of pictures."""

    source: str = "faces"
    holdout: float = 0.0  # the share of a folder's pictures that are the truth

    @property
    def name(self) -> str:
        """The beginning of the names of the results."""
        return Path(self.source).resolve().name if self.is_folder else self.source

    @property
    def is_folder(self) -> bool:
        return self.source != "faces"

    def training(self, resolution: int) -> Tensor:
        """The pictures to train on, uint8 [n, 3, resolution, resolution]."""
        return load_points(self.source, resolution, holdout=self.holdout)

    def truth(self, resolution: int) -> Tensor:
        """The pictures to compare samples with, uint8 [m, 3, resolution, resolution]."""
        if not self.is_folder:
            return draw(resolution, TRUTH, TRUTH_SEED)
        pictures = load_points(self.source, resolution)
        return held_out(pictures, self.holdout) if self.holdout else pictures


FACES = Source()


def draw(resolution: int, count: int, seed: int) -> Tensor:
    """Draw faces: uint8 [count, 3, resolution, resolution]."""
    return rearrange(torch.from_numpy(faces(resolution, count, seed)), "n h w c -> n c h w").contiguous()


def judge(samples: Tensor, training: Tensor, truth: Tensor) -> dict[str, float]:
    """All figures of samples; those of the spectrum are divided by those of the truth."""
    energy = [ours / theirs for ours, theirs in zip(octaves(samples), octaves(truth), strict=True)]
    spectrum = {f"octave_{k}": value for k, value in enumerate(energy)} | {"sharpness": energy[-1]}
    return against_truth(samples, truth) | against_training(samples, training) | spectrum


def recipe_of(method: str, resolution: int, seed: int, steps: int, data: Source = FACES) -> Recipe:
    """The recipe of a run."""
    if METHODS[method].get("generator.mapping") == "recursive":
        import benchmarks.recursive_mapping  # noqa: F401  # here, as every recipe knows its name from then on
    changes = {"data.resolution": resolution, "generator.blocks": BLOCKS[resolution], "train.seed": seed}
    changes |= {"train.iterations": steps, "log.samples_every": steps, "log.checkpoint_every": steps}
    changes |= {"log.measure_every": 0, "data.source": data.source, "data.holdout": data.holdout}
    return Recipe.load(ROOT / "recipes/faces.toml", changes | METHODS[method])


def one_run(
    method: str, resolution: int, seed: int, images: int, budget: str, folder: Path, data: Source = FACES
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

    Returns:
        One run for the JSON file; `seconds` are those of the processor, in training.
    """
    torch.set_num_threads(1)
    batch = recipe_of(method, resolution, seed, 1, data).train.batch_size
    recipe = recipe_of(method, resolution, seed, max(1, round(images / batch)), data)
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        with patch("imletriton.build.Trainer", TRAINERS.get(method, Trainer)):
            run = fit(recipe, Path(place) / "run", device="cpu")
        seconds = time.process_time() - began
        model = Generator.from_pretrained(run.path)
    samples = model.sample(SAMPLES, seed=SAMPLE_SEED)
    np.save(folder / f"{method}-{resolution}-{seed}-{budget}.npy", samples[:64].numpy())
    truth = torch.from_numpy(np.load(folder / f"truth-{resolution}.npy"))
    figures = judge(samples, data.training(resolution), truth) | {"path_length": path_length(model)}
    setting = {"method": method, "resolution": resolution, "seed": seed, "budget": budget, "images": images}
    setting["date"] = date.today().isoformat()
    return setting | {"seconds": round(seconds, 1)} | figures


def floor(resolution: int, truth: Tensor, data: Source = FACES) -> dict[str, dict[str, float]]:
    """The same figures of the training pictures themselves, and of as many other faces as the truth has."""
    training = data.training(resolution)
    copies = against_truth(training, truth) | {"sample_to_training": 0.0}
    if data.is_folder:
        return {"training pictures": copies, "distances": {"training": pixel_distance(truth, training)}}
    others = draw(resolution, TRUTH, FLOOR_SEED)
    return {"training pictures": copies, "other faces": judge(others, training, truth)} | {
        "distances": {"training": pixel_distance(truth, training), "others": pixel_distance(truth, others)}
    }


def rows(runs: list[dict[str, Any]], budget: str) -> list[str]:
    """The rows of a Markdown table: mean and deviation over the seeds, and a paired test of the Frechet distance."""
    lines = [f"| equal {budget} | " + " | ".join(title for title, _ in COLUMNS.values()) + " | p (Frechet) |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    of = {(r["method"], r["seed"]): r for r in runs if r["budget"] == budget or r["method"] == BASE}
    for method in dict.fromkeys(method for method in METHODS if any(key[0] == method for key in of)):
        seeds = sorted(seed for name, seed in of if name == method)
        cells = []
        for key, (_, digits) in COLUMNS.items():
            values = [of[method, seed][key] for seed in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}")
        pairs = [(of[method, s]["frechet"], of[BASE, s]["frechet"]) for s in seeds if (BASE, s) in of]
        tested = method != BASE and len(pairs) > 1
        cells.append(f"{ttest_rel(*zip(*pairs, strict=True)).pvalue:.3f}" if tested else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def sheets(
    folder: Path, resolution: int, budget: str, seed: int = 0, count: int = 64, columns: int = 8
) -> dict[str, Image.Image]:
    """A sheet of samples of each method, from the same latents."""
    budgets = {method: "images" if method == BASE else budget for method in METHODS}
    files = {method: folder / f"{method}-{resolution}-{seed}-{budget}.npy" for method, budget in budgets.items()}
    of = {method: np.load(file)[:count] for method, file in files.items() if file.exists()}
    return {method: image_grid(torch.from_numpy(samples), columns) for method, samples in of.items()}


def side_by_side(pictures: dict[str, Image.Image]) -> Image.Image:
    """All sheets with their titles in one picture."""
    parts = [titled(picture, name) for name, picture in pictures.items()]
    whole = Image.new("RGB", (sum(p.width + 8 for p in parts), max(p.height for p in parts)), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + 8
    return whole


def pairs(folder: Path, resolution: int, budget: str, seeds: int) -> Image.Image:
    """24 samples of the first method (left) and of OWN (right) for each seed, from the same latents; a row a seed."""
    found = [sheets(folder, resolution, budget, seed, 24, 12) for seed in range(seeds)]
    shown = [[of[BASE], of[OWN]] for of in found if {BASE, OWN} <= of.keys()]
    width, height = shown[0][0].size
    whole = Image.new("RGB", (2 * width + 8, len(shown) * (height + 8)), "white")
    for row, pair in enumerate(shown):
        for column, picture in enumerate(pair):
            whole.paste(picture, (column * (width + 8), row * (height + 8)))
    return whole


BLIND = """<!doctype html><meta charset="utf-8"><title>Which is better?</title>
<style>body {font: 16px sans-serif; text-align: center} img {image-rendering: pixelated; width: 45vw; cursor: pointer;
margin: 1vw}</style><h1>Which sheet is better?</h1><p id="count"></p><div id="pair"></div><pre id="result"></pre>
<script>
const sheets = SHEETS, pairs = PAIRS, wins = {};
let k = 0;
function next() {
  document.getElementById("count").textContent = k < pairs.length ? `${k + 1} of ${pairs.length}` : "Done.";
  const pair = document.getElementById("pair");
  pair.replaceChildren();
  if (k == pairs.length) {
    document.getElementById("result").textContent = Object.entries(wins).sort((a, b) => b[1] - a[1])
      .map(([name, count]) => `${count}  ${name}`).join("\\n");
    return;
  }
  for (const name of pairs[k]) {
    const image = document.createElement("img");
    image.src = "data:image/png;base64," + sheets[name];
    image.onclick = () => { wins[name] = (wins[name] || 0) + 1; k += 1; next(); };
    pair.append(image);
  }
}
next();
</script>
"""


def blind_page(pictures: dict[str, Image.Image]) -> str:
    """A page that shows pairs of sheets without names, in random order, and counts which one is chosen."""
    coded = {}
    for name, picture in pictures.items():
        file = BytesIO()
        picture.save(file, "PNG")
        coded[name] = b64encode(file.getvalue()).decode()
    names, rng = list(pictures), random.Random(0)
    pairs = [rng.sample([a, b], 2) for k, a in enumerate(names) for b in names[:k]]
    rng.shuffle(pairs)
    return BLIND.replace("SHEETS", json.dumps(coded)).replace("PAIRS", json.dumps(pairs))


def main() -> None:
    """Run what is missing, write the JSON file and the sheets, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--method", action="append", choices=METHODS, help="can be given several times; by default all")
    parser.add_argument("--source", default="faces", help="faces, or a folder of pictures to take in their place")
    parser.add_argument("--holdout", type=float, default=0.0, help="the share of a folder's pictures that is the truth")
    parser.add_argument("--resolution", type=int, default=32, choices=BLOCKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES, help="that the first method trains on")
    parser.add_argument("--budget", action="append", choices=["images", "time"], help="by default both")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--blind", type=Path, help="also write a page there that shows pairs of sheets without names")
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for the results; by default benchmarks/results, or runs/quality for a folder",
    )
    options = parser.parse_args()
    data = Source(options.source, options.holdout)
    out = options.out or (ROOT / "runs/quality" if data.is_folder else RESULTS)
    resolution, methods = options.resolution, list(dict.fromkeys([BASE, *(options.method or METHODS)]))
    path = out / f"quality-{data.name}-{resolution}.json"
    samples = out / "quality-samples"  # git ignores it
    if data.is_folder:
        samples = samples / data.name
    samples.mkdir(parents=True, exist_ok=True)
    truth = data.truth(resolution)
    np.save(samples / f"truth-{resolution}.npy", truth.numpy())
    kept = json.loads(path.read_text()) if path.exists() else {}
    if (kept.get("trained"), kept.get("holdout", 0.0)) != (options.images, data.holdout):
        kept = {}  # of another comparison
    runs = kept.get("runs", [])
    about = measure.machine(torch.device("cpu")) | {"trained": options.images, "holdout": data.holdout}
    floors = kept.get("floor") or floor(resolution, truth, data)
    with ProcessPoolExecutor(options.jobs) as pool:
        for budget in options.budget or ["images", "time"]:
            jobs = []
            for method in methods if budget == "images" else methods[1:]:
                for seed in range(options.seeds):
                    done = [r for r in runs if (r["method"], r["seed"], r["budget"]) == (method, seed, budget)]
                    if not done:
                        images = options.images if budget == "images" else _in_equal_time(runs, method, options.images)
                        jobs.append(pool.submit(one_run, method, resolution, seed, images, budget, samples, data))
            for job in as_completed(jobs):
                runs.append(job.result())
                print(json.dumps(runs[-1]), flush=True)
                runs.sort(key=lambda run: (run["budget"], list(METHODS).index(run["method"]), run["seed"]))
                path.write_text(json.dumps(about | {"floor": floors, "runs": runs}, indent=1) + "\n")
            pictures = sheets(samples, resolution, budget)
            side_by_side(pictures).save(path.with_name(f"{path.stem}-{budget}.png"), optimize=True)
            if {BASE, OWN} <= pictures.keys():
                several = pairs(samples, resolution, budget, options.seeds)
                several.save(path.with_name(f"{path.stem}-{budget}-pairs.png"), optimize=True)
            if options.blind:
                options.blind.write_text(blind_page(pictures))
            print("\n".join(rows(runs, budget)))
    print(json.dumps(floors, indent=1), f"\nWritten to {path}")


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
