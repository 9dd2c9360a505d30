"""The metrics that compare features of samples with those of the data, in one pass over the samples."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from imletriton.data import training_part
from imletriton.metrics import (
    authenticity,
    authenticity_of_data,
    frechet_distance,
    kernel_distance,
    networks,
    precision_recall,
)
from imletriton.metrics.features import features, kept_features
from imletriton.runs.schema import Metric

NEIGHBOURS = 3  # k of precision and recall
FEW = 1000  # samples for precision and recall, as in the papers, and for authenticity


def compare(
    images: Iterable[Tensor],
    count: int,
    pictures: Tensor,
    holdout: float,
    wanted: Collection[str],
    pretrained: bool,
    device: torch.device,
    progress: Callable[[str, int, int], object],
) -> dict[str, Metric]:
    """Measure all metrics but backtracking.

    Args:
        images: The samples in batches, each uint8 [b, 3, H, W].
        count: How many of them are compared; precision, recall and authenticity take FEW at most.
        pictures: The data, uint8 [n, 3, H, W].
        holdout: The share of the pictures that was held out from training, and so cannot have been copied.
        wanted: Names in METRICS; others are left out.
        pretrained: Whether the networks have pretrained weights.
        device: Where the networks run.
        progress: Called with the name of the work, how much of it is done, and how much there is.

    Returns:
        The metrics by name.

    Raises:
        Fault: A network returned features that are not finite.
    """
    few, judges = min(FEW, count), list[tuple[networks.Network, int]]()
    if {"fid", "kid"} & set(wanted):
        judges.append((networks.Inception(pretrained).to(device), count))
    if {"precision", "recall", "authenticity"} & set(wanted):
        judges.append((networks.VGG16(pretrained).to(device), few))
    if not judges:
        return {}

    def told(name: str, total: int) -> Callable[[int], object]:
        return lambda done: progress(name, done, total)

    data = {
        judge.name: kept_features(pictures, judge, pretrained, device, told(f"pictures by {judge.name}", len(pictures)))
        for judge, _ in judges
    }
    both = features(images, judges, device, told("samples", max(c for _, c in judges)))
    samples = {judge.name: x for (judge, _), x in zip(judges, both, strict=True)}
    metrics = dict[str, Metric]()
    if "fid" in wanted:
        metrics["fid"] = Metric(value=frechet_distance(samples["inception"], data["inception"]), samples=count)
    if "kid" in wanted:
        mean, deviation = kernel_distance(samples["inception"], data["inception"])
        metrics["kid"] = Metric(value=mean, deviation=deviation, samples=count)
    if {"precision", "recall"} & set(wanted):
        values = precision_recall(samples["vgg"], data["vgg"], NEIGHBOURS)
        named = zip(("precision", "recall"), values, strict=True)
        metrics |= {name: Metric(value=value, samples=few) for name, value in named if name in wanted}
    if "authenticity" in wanted:
        training = training_part(data["vgg"], mirror=False, holdout=holdout)  # only what was trained on can be copied
        value, reference = authenticity(samples["vgg"], training), authenticity_of_data(training)
        metrics["authenticity"] = Metric(value=value, samples=few, reference=reference, pictures=len(training))
    return metrics
