"""The figures of runs as tables in Markdown."""

import math
import statistics
from typing import Any

from scipy.stats import ttest_rel

from benchmarks.quality.methods import BASE, METHODS

# The key of each figure, its title and the number of decimals.
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


def rows(runs: list[dict[str, Any]], budget: str, trained: bool = False) -> list[str]:
    """Format the mean and the deviation of each figure over the seeds, and a paired test of the Frechet distance.

    Args:
        runs: What `one_run` returned.
        budget: "images" or "time". The first method trained on as many images in both cases.
        trained: Whether to show the figures of the trained network instead of the others.
    """
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
    """Format what the trained network and the random ones say of pictures that are known."""
    columns = {key: COLUMNS[key] for key in ("frechet", "precision", "recall", "coverage")} | TRAINED_COLUMNS
    lines = ["| | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in floors.items():
        if columns.keys() <= figures.keys():
            cells = [f"{figures[key]:.{digits}f}" for key, (_, digits) in columns.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
