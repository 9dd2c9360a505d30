"""Find the model or run that a command works on: a run, a checkpoint, any folder with a model, or a model on the Hub.

Needs no PyTorch, so that a wrong name is reported before PyTorch is imported, which takes seconds.
"""

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from imletriton.errors import InputError, notice
from imletriton.runs.checkpoint import MODEL_FILES, TRAINER_STATE, check_checkpoint, newest_whole
from imletriton.runs.run import RUNS, Run, is_checkpoint, newest_checkpoint, newest_run


@dataclass(frozen=True)
class Source:
    """A trained model, and the run that it belongs to."""

    name: str  # of the run, the folder or the model on the Hub, for titles and messages
    run: Run  # the checkpoint's run; for a model without a run, where commands write to
    checkpoint: Path  # the folder with config.json and model.safetensors
    version: str  # names the weights: the name of the checkpoint's or model's folder, or the Hub's commit
    step: int | None = None  # of the checkpoint; None without a run
    newest: bool = False  # whether the user named the run, and so means its newest checkpoint
    has_recipe: bool = False  # whether it belongs to a run with a recipe and the trainer's state

    def now(self) -> "Source":
        """This source, or its newest checkpoint where training has removed the one that was found meanwhile."""
        return self if self.checkpoint.exists() or not self.newest else open_source(self.run.path)

    @property
    def title(self) -> str:
        """The name, with the step if it is known."""
        return self.name if self.step is None else f"{self.name}, step {self.step}"


def open_source(source: str | PathLike[str] | Source | None) -> Source:
    """Find the model that a user means, and check its files.

    Args:
        source: A run or its folder, for its newest checkpoint that is not damaged; a checkpoint's folder; any folder
            with config.json and model.safetensors; the id of a model on the Hugging Face Hub, USER/NAME, which is
            downloaded into the Hub's cache; or None for the newest run. A `Source` is returned as it is.

    Raises:
        InputError: There is no such folder or model, files are missing or damaged in it, or the Hub cannot be reached.
    """
    if isinstance(source, Source):
        return source
    path = newest_run().path if source is None else Path(source)
    if not path.is_dir():
        check_hub_id(path)
        return _from_hub(str(path))
    newest, damaged = newest_whole(path)
    for what in damaged.values():
        notice(f"{what}: {newest} is used instead.")
    folder = newest or path
    if newest is None:
        for name in MODEL_FILES:
            if not (folder / name).is_file():
                raise _without(folder, name)
        if not is_checkpoint(folder):
            folder = folder.resolve()  # as in "." or "000500", from inside a run
        check_checkpoint(folder)
    if not is_checkpoint(folder):
        return Source(folder.name, Run(path), path, folder.name)
    run = Run(folder.parents[1])
    known = run.recipe_file.is_file() and (folder / TRAINER_STATE).is_file()
    return Source(run.path.resolve().name, run, folder, folder.name, int(folder.name), newest is not None, known)


def open_run(folder: Path | None) -> Run:
    """Find a run, which may have no checkpoint yet.

    Args:
        folder: The run's folder; None for the run in runs/ that was started or saved last.

    Raises:
        InputError: There is no such folder, or it is not a run.
    """

    def last_written(run: Run) -> float:
        return max(path.stat().st_mtime for path in (run.recipe_file, newest_checkpoint(run.path)) if path)

    if folder is None:
        started = [Run(path) for path in (RUNS.iterdir() if RUNS.is_dir() else ()) if Run(path).recipe_file.is_file()]
        if not started:
            raise InputError(
                f"There is no run in {RUNS}/: start one by `imletriton fit RECIPE`, or name a run's folder."
            )
        return max(started, key=last_written)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: {_similar(folder, 'name the folder of a run.')}")
    if not Run(folder).recipe_file.is_file():
        raise InputError(f"{folder} holds no run to resume: name the folder of a run, such as {RUNS}/NAME-001.")
    return Run(folder)


def check_hub_id(path: Path) -> None:
    """Check, without asking the Hub, that a path that is not a folder may be the id of a model there.

    Raises:
        InputError: It is not of the form USER/NAME, or USER/ is a folder here. The message suggests a similar folder.
    """
    is_local = len(path.parts) == 2 and (path.parent == RUNS or path.parent.exists())
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path), re.ASCII) is None or is_local:
        reason = ""
        if is_local and not path.is_absolute():
            reason = f", and is not looked for on the Hugging Face Hub because {path.parent}/ means a folder here"
        raise InputError(f"{path} is not a folder{reason}: {_similar(path, 'name a run or a checkpoint.')}")


def _similar(path: Path, otherwise: str) -> str:
    """Suggest the folder with the most similar name, where there is one, or else something else."""
    parent = path.parent if len(path.parts) > 1 else RUNS
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {parent / near[0]}?" if near else otherwise


def _without(folder: Path | str, name: str) -> InputError:
    return InputError(
        f"{folder} holds no {name}: name a run with a checkpoint, or a folder with {' and '.join(MODEL_FILES)}."
    )


def _from_hub(model: str) -> Source:
    """Download a model from the Hugging Face Hub, or take it from the Hub's cache if that is up to date or offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    commit, name = None, MODEL_FILES[0]
    try:
        for name in MODEL_FILES:
            with _without_warnings():
                file = Path(hf_hub_download(model, name, revision=commit))
            commit = file.parent.name  # both files are of one commit
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"The Hugging Face Hub cannot be reached, and {model} is not in its cache on this machine: "
            "try again with a connection, or name a folder."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"The Hugging Face Hub has no model {model} that can be read from here: check the name, "
            "or log in with `hf auth login`."
        ) from error
    except EntryNotFoundError:
        raise _without(f"{model} on the Hugging Face Hub", name) from None
    except Exception as error:  # which network errors the Hub's client raises depends on its version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{model} cannot be downloaded from the Hugging Face Hub ({reason}): try again.") from error
    check_checkpoint(file.parent)
    return Source(model, Run(RUNS / model.replace("/", "--")), file.parent, file.parent.name[:12])


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the warnings of the Hub's client: its exceptions hold all that a user must know."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def still_there(checkpoint: Path) -> Iterator[None]:
    """Raise InputError where reading a checkpoint in this context fails because training has removed it meanwhile."""
    try:
        yield
    except Exception as error:
        if checkpoint.exists():
            raise
        raise InputError(
            f"{checkpoint} was removed while it was read, as training keeps only the newest and best checkpoints: "
            "call this again."
        ) from error
