"""From a model or a folder of its samples to metrics: what `imletriton eval` calls."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from imletriton.commands.checks import check_evaluate
from imletriton.commands.samples import FolderSamples, ModelSamples
from imletriton.data import held_out, load_points, training_part
from imletriton.data.catalogue import published
from imletriton.distance import LPIPS
from imletriton.errors import InputError, notice
from imletriton.metrics import authenticity, authenticity_of_data, frechet_distance, kernel_distance, precision_recall
from imletriton.metrics.backtracking import backtrack
from imletriton.metrics.features import features, kept_features
from imletriton.metrics.networks import VGG16, Inception, Network
from imletriton.plotting.grids import image_pairs, save_picture, titled
from imletriton.runs.opening import Source, still_there
from imletriton.runs.run import write_whole
from imletriton.runs.schema import METRICS, Evaluation, Metric
from imletriton.system.device import choose_device
from imletriton.training.reporter import Progress, silent

NEIGHBOURS = 3  # k of precision and recall
FEW = 1000  # samples for precision and recall, as in the papers, and for authenticity
BY_VGG = {"precision", "recall", "authenticity"}
FEATURES = 2048  # of Inception: fewer pictures than that do not span them
BACKTRACKING = {"starts": 4, "steps": 300}


def evaluate(
    source: str | PathLike[str] | Source | None = None,
    samples: str | Path | None = None,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    n: int = 5000,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = notice,
) -> Evaluation:
    """Measure how good a model's samples are, or the pictures in any folder.

    The result is written into the run's eval.json, unless the pictures of a folder were judged. Metrics that eval.json
    held for the same checkpoint, data and weights stay in it. Where it cannot be written, what was measured is returned
    all the same.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run or,
            with `samples`, no model; then `data` is needed.
        samples: A folder of pictures of one size to judge in place of the model's samples.
        data: A source of pictures to compare with; by default all of the run's, held out or not, without mirror images.
        metrics: Names in METRICS; by default all that can be measured.
        n: How many samples are compared; precision, recall and authenticity take FEW at most.
        pretrained: Whether the networks have pretrained weights. The metrics of random ones compare with each other
            only.
        device: Where the networks run: cuda or cpu; by default cuda where there is a CUDA GPU.
        progress: Called with the name of the work, how much of it is done, and how much there is.
        warn: Called with a sentence where what was measured could not be written; by default a notice tells it.

    Returns:
        The metrics, and all that they depend on. `written` is None where there is no eval.json with them.

    Raises:
        InputError: A source cannot be used, a metric is not known or cannot be measured, or there are too few pictures
            or pictures of different sizes.
    """
    samples, device = Path(samples) if samples else None, choose_device(device)
    opened, where = check_evaluate(source, samples, data, metrics, n)
    opened = opened.now() if opened else None
    with still_there(opened.checkpoint) if opened else contextlib.nullcontext():
        model = ModelSamples(opened, device) if opened else None
        judged: ModelSamples | FolderSamples = FolderSamples(samples, n) if samples else model  # type: ignore[assignment]
        pictures = load_points(where, judged.resolution, progress=partial(progress, "pictures"))
        if model and data is None:
            model.check_data(pictures)
        wanted = list(metrics or (name for name in METRICS if name != "backtracking" or judged.holdout))
        # All that may fail is done before anything is measured.
        held = _held_out(model) if model and "backtracking" in wanted else None
        notes = judged.notes
    count, holdout = min(n, judged.count), judged.holdout if data is None else 0.0
    if min(FEW, count, len(pictures)) <= NEIGHBOURS and {"precision", "recall"} & set(wanted):
        few = f"{len(pictures)} pictures and {count} samples are too few for precision and recall, which look at "
        few += f"{NEIGHBOURS} neighbours: at least {NEIGHBOURS + 1} of both are needed."
        if metrics:
            raise InputError(few)
        wanted, notes = [name for name in wanted if name not in ("precision", "recall")], [*notes, few]

    result = Evaluation(
        run=str(opened.run.path) if opened else None,
        step=judged.step,
        samples=judged.label,
        count=count,
        data=where,
        pictures=len(pictures),
        resolution=judged.resolution,
        weights="pretrained" if pretrained else "random",
        metrics=_compare(judged.batches(count), count, pictures, holdout, wanted, pretrained, device, progress),
        published=published(where) if pretrained else {},
        notes=[*_notes(len(pictures), count, wanted, pretrained), *notes],
        imletriton=version("imletriton"),
        written=None,
    )
    if isinstance(judged, ModelSamples):
        problems = dict[Path, str]()  # why a file could not be written
        _write(judged.source, result, problems)  # so that an interrupted backtracking loses none of it
        if held is not None:
            result.metrics["backtracking"], sheet = _backtrack(judged, held, pretrained, device, progress)
            picture = judged.source.run.figure("backtracking")
            with _noting(picture, problems):
                save_picture(picture, sheet)
            _write(judged.source, result, problems)
        if problems:
            files = " and ".join(f"{path} ({reason})" for path, reason in problems.items())
            rest = "" if result.written else ": these figures are kept nowhere else"
            warn(f"Could not write {files}{rest}.")
    return result


def _compare(
    images: Iterable[Tensor],
    count: int,
    pictures: Tensor,
    holdout: float,
    wanted: Sequence[str],
    pretrained: bool,
    device: torch.device,
    progress: Progress,
) -> dict[str, Metric]:
    """Measure the metrics that compare features of samples with those of the data, of which a share was held out."""
    few, networks = min(FEW, count), list[tuple[Network, int]]()
    if {"fid", "kid"} & set(wanted):
        networks.append((Inception(pretrained).to(device), count))
    if BY_VGG & set(wanted):
        networks.append((VGG16(pretrained).to(device), few))
    if not networks:
        return {}

    def told(name: str, total: int) -> Callable[[int], None]:
        return lambda done: progress(name, done, total)

    data = {
        network.name: kept_features(
            pictures, network, pretrained, device, told(f"pictures by {network.name}", len(pictures))
        )
        for network, _ in networks
    }
    both = features(images, networks, device, told("samples", max(c for _, c in networks)))
    samples = {network.name: x for (network, _), x in zip(networks, both, strict=True)}
    metrics = dict[str, Metric]()
    if "fid" in wanted:
        fid = frechet_distance(samples["inception"], data["inception"])
        metrics["fid"] = Metric(value=fid, samples=count)
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


def _held_out(model: ModelSamples) -> Tensor:
    """The pictures that were held out from the model's training, uint8 [n, 3, H, W]."""
    assert model.recipe  # pictures are held out by a recipe
    pictures = load_points(model.recipe.data.source, model.recipe.data.resolution)
    model.check_data(pictures)
    return held_out(pictures, model.recipe.data.holdout)


def _backtrack(
    judged: ModelSamples, pictures: Tensor, pretrained: bool, device: torch.device, progress: Progress
) -> tuple[Metric, Image.Image]:
    """Measure LPIPS backtracking, and draw the pictures held out beside their best reconstructions."""
    lpips = LPIPS("vgg", 0.0, pretrained, seed=0).to(device)
    total = BACKTRACKING["steps"] * len(pictures)
    found = backtrack(
        judged.model, pictures, lpips, **BACKTRACKING, progress=lambda k: progress("backtracking", k, total)
    )
    sheet = titled(image_pairs(pictures, found.images), f"{judged.source.title}: held out, and reconstructed")
    return Metric(value=float(found.distance.mean()), pictures=len(pictures), **BACKTRACKING), sheet


def _notes(n: int, m: int, wanted: Sequence[str], pretrained: bool) -> list[str]:
    """Sentences that a reader of the metrics must know, for n pictures and m samples."""
    notes = []
    if not pretrained:
        notes.append("Random weights: these figures compare with each other, never with published ones.")
    if "fid" in wanted and min(n, m) < FEATURES:
        notes.append(
            f"FID of so few ({n} pictures, {m} samples) is biased upwards: compare it only where both numbers are the "
            "same. KID is not biased, but varies by its ±."
        )
    if "recall" in wanted and n < FEW:
        notes.append(f"Recall of {n} pictures moves in steps of {100 / n:.2g} %.")
    return notes


def _write(source: Source, result: Evaluation, problems: dict[Path, str]) -> None:
    """Write eval.json, with the metrics that it held for the same checkpoint, data and weights.

    Without a step nothing says that its metrics are of the same weights.
    """
    path = source.run.evaluation_file
    with contextlib.suppress(InputError):
        before = source.run.evaluation()
        if (
            before
            and result.step is not None
            and all(getattr(before, k) == getattr(result, k) for k in ("step", "data", "pictures", "weights"))
        ):
            result.metrics = before.metrics | result.metrics
    result.metrics = {name: result.metrics[name] for name in METRICS if name in result.metrics}
    result.written = str(path)
    with _noting(path, problems):
        if source.step is None:  # a run's folder that is gone must not come back with nothing else in it
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write_text(json.dumps(result.to_json(), indent=1) + "\n", "utf-8"))
    if path in problems:
        result.written = None


@contextlib.contextmanager
def _noting(path: Path, problems: dict[Path, str]) -> Iterator[None]:
    """Note why a file could not be written, which must not cost what was measured."""
    problems.pop(path, None)
    try:
        yield
    except OSError as error:
        problems[path] = str(error.strerror)
