"""Charts of a run. They need no display, and the colour-blind can tell their colours apart (Okabe and Ito)."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

from imletriton.runs.schema import LogRecord
from imletriton.selection.adaptive import QUANTILES
from imletriton.selection.misalignment import nearest_of

BLACK, BLUE, GREEN, ORANGE = "#000000", "#0072b2", "#009e73", "#d55e00"
COLOURS = [BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", BLACK, "#f0e442"]
MARKERS = "o^sDv"
VERTICES = 2000  # of a curve, at most


def samples_over_points(samples: Tensor, points: Tensor | None) -> Image.Image:
    """Plot samples [k, 2] and data points [n, 2], if known, of the plane."""
    figure = _figure("", 6, 6)
    axes = figure.add_subplot(aspect="equal")
    _scatter(axes, samples.cpu(), points if points is None else points.cpu())
    axes.legend(loc="upper right")
    return _drawn(figure)


class Snapshot(NamedTuple):
    """A generator of points in the plane at one step of its training."""

    step: int
    samples: Tensor  # [k, 2]
    selected: Tensor  # [n, 2], the sample that each data point selected
    epsilon: float  # rejection radius; 0: none


def samples_over_time(title: str, points: Tensor, snapshots: list[Snapshot]) -> Image.Image:
    """Plot samples, data points [n, 2] with their rejection radius, and the sample that each selected.

    There is a panel for each snapshot, as in RS-IMLE's figure 4.
    """
    columns = min(3, len(snapshots))
    rows = -(-len(snapshots) // columns)
    figure = _figure(title, 4 * columns, 4 * rows)
    reach = 1.6 * float(points.abs().max())
    for k, snapshot in enumerate(snapshots):
        axes = figure.add_subplot(rows, columns, k + 1, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set_title(f"step {snapshot.step}", fontsize=10)
        for x in points.tolist():
            axes.add_patch(Circle(x, snapshot.epsilon, color="0.85", zorder=0))
        for x, y in zip(points, snapshot.selected, strict=True):
            axes.plot(*torch.stack([x, y], 1), color=BLACK, linewidth=0.8)
        axes.scatter(
            snapshot.selected[:, 0], snapshot.selected[:, 1], s=50, color=BLACK, marker="*", label="selected", zorder=3
        )
        _scatter(axes, snapshot.samples, points)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=2)
    return _drawn(figure)


def latents_over_prior(title: str, latents: Tensor, owner: Tensor) -> Image.Image:
    """Plot latent codes, float32 [k, 2], coloured by the data point that selected each, as in RS-IMLE's figure 2.

    `owner`, int64 [k], has the data points' numbers, and -1 for none.
    """
    figure = _figure(title, 7, 7)
    axes = figure.add_subplot(aspect="equal", xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xlabel="$z_1$", ylabel="$z_2$")
    for radius, inside in ((1, "39 %"), (2, "86 %"), (3, "99 %")):
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6", linewidth=0.8))
        axes.annotate(inside, (0, radius), fontsize=8, color="0.2", ha="center", va="bottom", zorder=3)
    for i in range(int(owner.max()) + 1):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        own = latents[owner == i]
        axes.scatter(own[:, 0], own[:, 1], s=12, color=colour, marker=marker, linewidths=0, alpha=0.8)
    return _drawn(figure)


def thresholds_over_time(title: str, log: list[LogRecord]) -> Image.Image:
    """Plot the density of the thresholds tau_i over the steps, as in Adaptive IMLE's figure 2.

    The density is estimated from the quantiles in the log.
    """
    figure = _figure(title, 8, 5)
    axes = figure.add_subplot(xlabel="step", ylabel=r"threshold $\tau_i$", yscale="log")
    step = [record.step for record in log]
    tau = np.log10(
        np.clip([[getattr(record, f"tau_{q}") for record in log] for q in QUANTILES], 1e-12, None)
    )  # [5, steps]
    heights = np.linspace(tau.min(), tau.max() + 1e-3, 400)[:, None]
    density = np.zeros((len(heights), len(step)))
    for low, high in itertools.pairwise(tau):  # a quarter of the data points is between them
        density += ((low <= heights) & (heights < high)) * 0.25 / np.maximum(high - low, 0.05)
    width = step[1] - step[0] if len(step) > 1 else 1
    edges = np.array([step[0] - width, *step])
    axes.pcolormesh(edges, 10 ** np.append(heights, heights[-1] + 1e-3), density, cmap="Blues")
    axes.plot(step, 10 ** tau[len(QUANTILES) // 2], color=ORANGE, label="median")
    axes.legend(title="darker: more data points")
    return _drawn(figure)


def curves(title: str, log: list[LogRecord]) -> Image.Image:
    """Plot the loss, the distances in training and of random samples, and the FID over the steps."""
    panels = {
        "loss": {"loss": "mean training loss"},
        "distance": {
            "nearest": "data point to selected sample",
            "random": "random sample to data point",
            "samples_to_data": "the same, averaged weights",
            "held_out_to_samples": "held-out picture to sample",
        },
        "FID": {"fid": "FID"},
    }
    drawn = {
        name: keys
        for name, keys in panels.items()
        if any(getattr(record, k) is not None for record in log for k in keys)
    }
    figure = _figure(title, 5 * len(drawn), 4)
    for k, (name, keys) in enumerate(drawn.items()):
        axes = figure.add_subplot(1, len(drawn), k + 1, xlabel="step", ylabel=name)
        axes.set_yscale("linear" if name == "FID" else "log")
        for (key, label), colour, marker in zip(keys.items(), COLOURS, MARKERS, strict=False):
            known = [(record.step, value) for record in log if (value := getattr(record, key))]
            if not known:
                continue
            few = len(known) < 40
            axes.plot(*zip(*known, strict=True), color=colour, label=label, marker=marker if few else "", markersize=4)
        if len(keys) > 1:
            axes.legend()
    return _drawn(figure)


def distance_distributions(title: str, selected: Tensor, distances: Tensor, m: int) -> Image.Image:
    """Plot the distributions of the distances to selected and to random samples, as in RS-IMLE's figure 3.

    With the theory for pools of m and of n samples: 1 - (1 - F)^m, equation 3 of RS-IMLE, averaged over data points.

    Args:
        title: The title.
        selected: The distance of each data point to its selected sample, float32 [n].
        distances: The distances of each data point to random samples, float32 [n, s].
        m: The size of the pool.
    """
    figure = _figure(title, 8, 5)
    axes = figure.add_subplot(xlabel="distance of a data point to the sample", ylabel="share that is nearer")
    n, s = distances.shape
    values, order = distances.sort(1).values.flatten().sort()
    shown = torch.linspace(0, n * s - 1, min(n * s, VERTICES)).long()
    values = values[shown]

    def curve(size: int) -> Tensor:
        return nearest_of(s, size).expand(n, s).flatten()[order].cumsum(0)[shown] / n

    axes.plot(values, curve(1), color=ORANGE, label="any sample, as at test time")
    axes.plot(values, curve(n), color=GREEN, linestyle="--", label=f"theory: the nearest of n = {n}")
    axes.plot(values, curve(m), color=BLACK, linestyle=":", label=f"theory: the nearest of m = {m}")
    axes.step(selected.sort().values, (torch.arange(n) + 1) / n, where="post", color=BLUE, label="selected")
    axes.legend(loc="lower right")  # where no curve is; matplotlib's search for a place is slow
    return _drawn(figure)


def _scatter(axes: Axes, samples: Tensor, points: Tensor | None) -> None:
    axes.scatter(samples[:, 0], samples[:, 1], s=4, color=BLUE, alpha=0.4, linewidths=0, label="samples")
    if points is not None:
        axes.scatter(points[:, 0], points[:, 1], s=30, color=ORANGE, marker="s", label="data points", zorder=3)


def _figure(title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _drawn(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
