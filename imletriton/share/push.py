"""A model on the Hugging Face Hub, with a card that shows it: `imletriton push`."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from imletriton.data import BUILT_IN, catalogue, count_points
from imletriton.errors import InputError, notice
from imletriton.recipe import Recipe, recipe_of
from imletriton.runs.checkpoint import MODEL_FILES
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.schema import METRICS, Evaluation, Metric
from imletriton.system.checks import check_device, check_new_folder, writing

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch

    from imletriton.generator import Generator

UNKNOWN = (
    "imletriton does not know the licence of the data: ask whoever made the pictures before you use the model or its "
    "samples for more than research."
)


def push(
    source: str | PathLike[str] | Source | None,
    repo: str,
    private: bool = False,
    out: str | Path | None = None,
    device: "str | torch.device | None" = None,
    note: Callable[[str], object] = lambda text: None,
) -> str:
    """Upload a model to the Hugging Face Hub, with its recipe and a card that has samples, metrics and licence.

    A model that is there already gets a new version. The metrics are those of `imletriton eval` for the same weights.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        repo: The id of the model on the Hub, USER/NAME.
        private: Whether only its owner can see a model that is new on the Hub.
        out: A new or empty folder for all files, to look at; then nothing is uploaded.
        device: Where the samples of the card are drawn, cuda or cpu; None takes cuda where there is a CUDA GPU.
        note: Called with a sentence before PyTorch is imported, which takes seconds.

    Returns:
        The model's address, or the folder.

    Raises:
        InputError: The source, the id or the device cannot be used; the folder cannot be written; there is no token or
            the Hub does not accept it; or the Hub cannot be reached.
    """
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo, re.ASCII) or ".." in repo or "--" in repo or len(repo) > 96:
        raise InputError(f"{repo!r} is not an id of a model on the Hugging Face Hub: name it USER/NAME.")
    if Path(repo).exists():
        raise InputError(f"{repo} is a folder here: name the model on the Hugging Face Hub, USER/NAME, after it.")
    if out is not None:
        check_new_folder(Path(out), "out")
    elif not get_token():
        raise InputError(
            "There is no token of the Hugging Face Hub: log in with `hf auth login`, or set HF_TOKEN; `out=DIR` writes "
            "what would be uploaded into a folder."
        )
    check_device(device)
    opened = open_source(source)
    note(f"Drawing samples of {opened.title} for {repo}: loading PyTorch.")
    with tempfile.TemporaryDirectory() if out is None else contextlib.nullcontext(str(out)) as folder:
        _write(opened, repo, Path(folder), device)
        return _upload(Path(folder), repo, private) if out is None else str(out)


def _write(opened: Source, repo: str, folder: Path, device: "str | torch.device | None") -> None:
    """Write all that is uploaded into a folder."""
    from imletriton.plotting.grids import save_picture
    from imletriton.share.views import Shown

    opened = opened.now()
    recipe, evaluation = recipe_of(opened), _of_these_weights(opened)
    with writing(folder, "make room, or choose another folder with `out=DIR`"), still_there(opened.checkpoint):
        folder.mkdir(parents=True, exist_ok=True)
        shown = Shown(opened, device=device)
        save_picture(folder / "samples.png", shown.draw_samples())
        for name in MODEL_FILES:
            shutil.copy(opened.checkpoint / name, folder)
        if recipe:
            (folder / "recipe.toml").write_text(recipe.for_others().to_toml(), "utf-8")
        (folder / "README.md").write_text(_card(opened, repo, shown.model, recipe, evaluation), "utf-8")


def _of_these_weights(opened: Source) -> Evaluation | None:
    """The run's evaluation, if it is of the same checkpoint and by pretrained networks."""
    evaluation = opened.run.evaluation()
    if evaluation is None or (evaluation.step, evaluation.weights) == (opened.step, "pretrained"):
        return evaluation.for_others() if evaluation else None
    reason = f"of step {evaluation.step}" if evaluation.step != opened.step else "by networks with random weights"
    again = "`imletriton eval` measures them again"
    notice(f"{opened.run.evaluation_file} is {reason}, so its metrics are left out: {again}.")
    return None


def _card(opened: Source, repo: str, model: "Generator", recipe: Recipe | None, evaluation: Evaluation | None) -> str:
    """The model's card, README.md on the Hub: its metadata in YAML, then the page."""
    import jinja2
    from huggingface_hub import EvalResult, ModelCardData

    pictures, name, task = len(model.shape) == 3, repo.partition("/")[2], "unconditional-image-generation"
    known = catalogue.named_by(recipe.data.source) if recipe else None
    data, licence, licence_id = _data(recipe, known)
    metrics = evaluation.metrics if evaluation else {}
    results = [
        EvalResult(task, "custom", data.rstrip("."), key, metric.value, metric_name=METRICS[key].name)
        for key, metric in metrics.items()
    ]
    metadata = ModelCardData(
        license=licence_id,
        library_name="imletriton",
        pipeline_tag=task if pictures else None,
        tags=["imle", "few-shot"],
        model_name=name,
        eval_results=results or None,
    )
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent))
    return environment.get_template("card.md").render(
        metadata=metadata.to_yaml().strip(),
        name=name,
        repo=repo,
        kind=f"{model.shape[2]}x{model.shape[1]} pictures" if pictures else "points in the plane",
        samples=f"{'uint8' if pictures else 'float32'} [64, {', '.join(map(str, model.shape))}]",
        pictures=pictures,
        points=_points(recipe),
        parameters=sum(p.numel() for p in model.parameters()),
        step=opened.step,
        data=data,
        licence=licence,
        evaluation=evaluation,
        metrics=[{"title": METRICS[key], "value": _written(metric)} for key, metric in metrics.items()],
        recipe=recipe.for_others().to_toml().strip() if recipe else None,
    )


def _written(metric: Metric) -> str:
    return f"{metric.value:.4g}" + ("" if metric.deviation is None else f" ± {metric.deviation:.2g}")


def _points(recipe: Recipe | None) -> int | None:
    """How many pictures or points a recipe trains on, without mirror images; None where they are not available."""
    with contextlib.suppress(InputError):
        return count_points(recipe.data.source, holdout=recipe.data.holdout) if recipe else None
    return None


def _data(recipe: Recipe | None, known: catalogue.KnownSet | None) -> tuple[str, str, str]:
    """A sentence on the data, one on their licence, and the Hub's name of that licence."""
    if recipe is None:
        return "The training data are not known.", UNKNOWN, "unknown"
    source = recipe.for_others().data.source
    if source in BUILT_IN:
        return f"The set `{source}`, which imletriton's code draws.", "Data and code: Apache-2.0.", "apache-2.0"
    if known is None:
        return f"The pictures of a folder named `{source}`.", UNKNOWN, "unknown"
    stated = not known.licence.startswith("none stated")
    licence_id = known.licence.partition(":")[0].lower().replace(" ", "-") if stated else "unknown"
    return f"{known.title}: {known.source}.", f"Licence of the data: {known.licence}.", licence_id


def _upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder; the model's address. Raises InputError where the Hub refuses it or cannot be reached."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="imletriton")
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a model by imletriton")
    except Exception as error:  # which network errors the Hub's client raises depends on its version
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".:")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            told = "does not accept the token: log in again with `hf auth login`, or set HF_TOKEN"
        elif status in (403, 404):
            told = f"does not let this token write to {repo}: check the name, and that the token has write access"
        elif status is None:
            told = f"cannot be reached ({reason}): try again with a connection"
        else:
            told = f"refused {repo} ({reason}): try again"
        raise InputError(f"The Hugging Face Hub {told}.") from error
    return str(url)
