"""Metrics of a model's samples, or of any folder's pictures: `imletriton eval`."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from imletriton.data import check_points, count_points, held_out, load_points, training_part
from imletriton.data.catalogue import published
from imletriton.data.samples import FolderSamples, list_samples
from imletriton.errors import InputError, notice, suggestion
from imletriton.recipe import recipe_of
from imletriton.runs.checkpoint import best_checkpoint, load_state
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.run import write_whole
from imletriton.runs.schema import METRICS, Evaluation, Metric
from imletriton.sections import MAX_SAMPLES
from imletriton.system.checks import MAX_SEED, check_device, check_range, check_writable
from imletriton.training.memory import check_fid_memory
from imletriton.training.reporter import Progress, silent

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from imletriton.generator import Generator

FEATURES = 2048  # of Inception: fewer pictures than that do not span them
BACKTRACKING = {"starts": 4, "steps": 300}


def evaluate(
    source: str | PathLike[str] | Source | None = None,
    samples: str | Path | None = None,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    n: int = 5000,
    pretrained: bool = True,
    device: "str | torch.device | None" = None,
    progress: Progress = silent,
    seed: int = 0,
    out: str | Path | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Evaluation:
    """Measure how good a model's samples are, or the pictures in any folder.

    The result is written into the run's eval.json, unless the pictures of a folder were judged. Metrics that eval.json
    held for the same checkpoint, seed, data and weights stay in it. Where it cannot be written, a notice says so, and
    the result is returned all the same.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run or,
            with `samples`, no model; then `data` is needed.
        samples: A folder of pictures of one size to judge instead of the model's samples.
        data: A source of pictures to compare with; by default all of the run's, held out or not, without mirror images.
        metrics: Names in METRICS; by default all that can be measured.
        n: How many samples are compared; precision, recall and authenticity take 1,000 at most.
        pretrained: Whether the networks have pretrained weights. The metrics of random ones compare with each other
            only.
        device: Where the networks run: cuda or cpu; by default cuda where there is a CUDA GPU.
        progress: Called with the name of the work, how much of it is done, and how much there is.
        seed: The random seed of the model's samples.
        out: The JSON file for the result, instead of the run's eval.json.
        note: Called with a sentence on what is compared, before PyTorch is loaded.

    Returns:
        The metrics, and all that they depend on. `written` is None where they were not written.

    Raises:
        InputError: A source cannot be used, a metric is not known or cannot be measured, a number is out of range, the
            file cannot be written, or there are too few pictures or pictures of different sizes.
    """
    samples, out = (Path(path) if path else None for path in (samples, out))
    check_device(device)
    opened, where = _check(source, samples, data, metrics, n, seed, out)
    note(f"Comparing {samples or (opened.title if opened else '')} with {where}: loading PyTorch.")

    from imletriton.metrics.comparison import FEW, NEIGHBOURS, compare
    from imletriton.system.device import choose_device

    chosen, opened = choose_device(device), opened.now() if opened else None
    with still_there(opened.checkpoint) if opened else contextlib.nullcontext():
        model = ModelSamples(opened, chosen, seed) if opened else None
        judged: ModelSamples | FolderSamples = FolderSamples(samples, n) if samples else model  # type: ignore[assignment]
        pictures = load_points(where, judged.resolution, progress=partial(progress, "pictures"))
        if model and data is None:
            model.check_data(pictures)
        wanted = list(metrics or (name for name in METRICS if name != "backtracking" or judged.holdout))
        # All that may fail is done before anything is measured.
        held = model.held_out() if model and "backtracking" in wanted else None
        notes = judged.notes
    count = min(n, judged.count)
    if min(FEW, count, len(pictures)) <= NEIGHBOURS and {"precision", "recall"} & set(wanted):
        few = f"{len(pictures)} pictures and {count} samples are too few for precision and recall, which look at "
        few += f"{NEIGHBOURS} neighbours: at least {NEIGHBOURS + 1} of both are needed."
        if metrics:
            raise InputError(few)
        wanted, notes = [name for name in wanted if name not in ("precision", "recall")], [*notes, few]

    holdout = judged.holdout if data is None else 0.0
    result = Evaluation(
        run=str(opened.run.path) if opened else None,
        step=judged.step,
        samples=judged.label,
        count=count,
        data=where,
        pictures=len(pictures),
        resolution=judged.resolution,
        weights="pretrained" if pretrained else "random",
        metrics=compare(judged.batches(count), count, pictures, holdout, wanted, pretrained, chosen, progress),
        published=published(where) if pretrained else {},
        notes=[*_notes(len(pictures), count, wanted, pretrained), *notes],
        imletriton=version("imletriton"),
        written=None,
    )
    if isinstance(judged, ModelSamples) or out:
        backtracking = None
        if model and held is not None:
            backtracking = partial(_backtrack, model, held, pretrained, chosen, progress)
        _keep(result, opened, out, backtracking)
    return result


def _check(
    source: str | PathLike[str] | Source | None,
    samples: Path | None,
    data: str | None,
    metrics: Sequence[str] | None,
    n: int,
    seed: int,
    out: Path | None,
) -> tuple[Source | None, str]:
    """Check the arguments of `evaluate`.

    Returns:
        The opened source, None where only folders are compared; and the source of the pictures to compare with.
    """
    for name in metrics or ():
        if name not in METRICS:
            raise InputError(f"`metrics`: {name!r} is not known: {suggestion(name.lower(), METRICS)}")
    check_range("n", n, 2, MAX_SAMPLES)
    check_range("seed", seed, 0, MAX_SEED)
    if not samples and not {"fid", "kid"}.isdisjoint(metrics or METRICS):
        check_fid_memory(n)
    if out:
        if out.is_dir():
            raise InputError(f"{out} is a folder: name the JSON file with `out`.")
        check_writable(out.parent, out, "choose another file with `out`")
    if source is None and samples and data is None:
        raise InputError("eval needs a run, or `samples=DIR` with `data=SOURCE` to compare them with.")
    opened = None if source is None and samples else open_source(source)
    recipe = recipe_of(opened) if opened else None
    pictures = data or (recipe.data.source if recipe else None)
    if pictures is None:
        assert opened  # otherwise `data` is given
        raise InputError(
            f"{opened.name} comes without its recipe, so the pictures that it was trained on are not known: name the "
            "pictures to compare with by `data=SOURCE`."
        )
    if samples:
        list_samples(samples.expanduser())
    if metrics and "backtracking" in metrics and (samples or not recipe or not recipe.data.holdout):
        raise InputError("backtracking needs a run that was trained with data.holdout, such as 0.1.")
    if pictures == "toy2d":
        raise InputError(f"{pictures} holds points, not pictures: `imletriton show` draws them.")
    count_points(pictures)
    return opened, pictures


class ModelSamples:
    """Samples that a model makes from a random seed.

    Args:
        source: The model.
        device: Where it runs.
        seed: The random seed.
    """

    count = 2**32  # samples that it can make

    def __init__(self, source: Source, device: "torch.device", seed: int) -> None:
        self.source, self.device, self.seed = source, device, seed
        self.step, self.label = source.step, f"seed {seed}"
        self.recipe = recipe_of(source)
        self.holdout = self.recipe.data.holdout if self.recipe else 0.0

    @cached_property
    def model(self) -> "Generator":
        """The generator, in eval mode.

        Raises:
            InputError: It generates points, not pictures.
        """
        from imletriton.generator import Generator

        model = Generator.from_pretrained(self.source).to(self.device)
        if len(model.shape) != 3:
            raise InputError(f"{self.source.name} generates points, not pictures: `imletriton show` draws them.")
        return model

    @property
    def resolution(self) -> int:
        return self.model.shape[-1]

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the metrics must know."""
        notes = []
        if self.holdout:
            notes.append("Pictures held out from training are among those compared with.")
        if self.source.has_recipe:
            best = best_checkpoint(self.source.run.path)
            if best.name != self.source.checkpoint.name and load_state(best).get("fid") is not None:
                notes.append(f"Training measured its lowest FID at step {int(best.name)}: imletriton eval {best}")
        return notes

    def batches(self, n: int) -> "Iterator[Tensor]":
        """Samples 0 to n - 1 in batches, uint8 [b, 3, H, W]."""
        return self.model.sample_batches(n, self.seed)

    def check_data(self, pictures: "Tensor") -> None:
        """Check that all pictures of the recipe's source are those that were there in training.

        Raises:
            InputError: They are not.
        """
        if self.recipe:
            trained = training_part(pictures, self.recipe.data.mirror, self.recipe.data.holdout)
            check_points(trained, load_state(self.source.checkpoint)["data"], str(self.source.run.path))

    def held_out(self) -> "Tensor":
        """The pictures that were held out from training, uint8 [n, 3, H, W]."""
        assert self.recipe  # pictures are held out by a recipe
        pictures = load_points(self.recipe.data.source, self.recipe.data.resolution)
        self.check_data(pictures)
        return held_out(pictures, self.holdout)


def _backtrack(
    judged: ModelSamples, pictures: "Tensor", pretrained: bool, device: "torch.device", progress: Progress
) -> "tuple[Metric, Image]":
    """Measure LPIPS backtracking, and draw the pictures held out beside their best reconstructions."""
    from imletriton.distance import LPIPS
    from imletriton.metrics.backtracking import backtrack
    from imletriton.plotting.grids import image_pairs, titled

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
        notes.append("Random weights: compare these figures with each other only, never with published ones.")
    if "fid" in wanted and min(n, m) < FEATURES:
        notes.append(
            f"FID of so few ({n} pictures, {m} samples) is biased upwards: compare it only where both numbers are the "
            "same. KID is not biased, but varies by its ±."
        )
    if "recall" in wanted and n < 1000:
        notes.append(f"Recall of {n} pictures moves in steps of {100 / n:.2g} %.")
    return notes


def _keep(
    result: Evaluation,
    source: Source | None,
    out: Path | None,
    backtracking: "Callable[[], tuple[Metric, Image]] | None",
) -> None:
    """Write a result, measure backtracking, which takes long, and write it again. A notice tells what cannot be."""
    problems = dict[Path, str]()  # why a file could not be written
    _write(result, source, out, problems)  # so that an interrupted backtracking loses none of it
    if backtracking and source:
        from imletriton.plotting.grids import save_picture

        result.metrics["backtracking"], sheet = backtracking()
        picture = source.run.figure("backtracking")
        with _noting(picture, problems):
            save_picture(picture, sheet)
        _write(result, source, out, problems)
    if problems:
        files = " and ".join(f"{path} ({reason})" for path, reason in problems.items())
        rest = "" if result.written else ": these figures are kept nowhere else"
        notice(f"Could not write {files}{rest}.")


def _write(result: Evaluation, source: Source | None, out: Path | None, problems: dict[Path, str]) -> None:
    """Write a result as JSON; into the eval.json of a run, with what that held of the same samples and data."""
    new_folder = True
    if out is None and source:
        new_folder, out = source.step is None, source.run.evaluation_file  # a run that is gone must not come back
        with contextlib.suppress(InputError):
            before = source.run.evaluation()
            if before and result.step is not None and _agree(before, result):  # without a step, weights are unknown
                result.metrics = before.metrics | result.metrics
    assert out
    result.metrics = {name: result.metrics[name] for name in METRICS if name in result.metrics}
    result.written = str(out)
    with _noting(out, problems):
        if new_folder:
            out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda path: path.write_text(json.dumps(result.to_json(), indent=1) + "\n", "utf-8"))
    if out in problems:
        result.written = None


def _agree(one: Evaluation, other: Evaluation) -> bool:
    """Whether two results are of the same samples, pictures and networks, so that their metrics belong together."""
    return all(getattr(one, key) == getattr(other, key) for key in ("step", "samples", "data", "pictures", "weights"))


@contextlib.contextmanager
def _noting(path: Path, problems: dict[Path, str]) -> Iterator[None]:
    """Note why a file could not be written, which must not cost what was measured."""
    problems.pop(path, None)
    try:
        yield
    except OSError as error:
        problems[path] = str(error.strerror)
