"""Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE.

run = imletriton.fit("faces")  # a recipe, by its file or by the name of one that comes with imletriton
images = imletriton.Generator.from_pretrained(run).sample(64, seed=0)  # uint8 [64, 3, H, W]

Each command of the command line is a function here. A model is named as there: by a run, a checkpoint, any folder with
a model or an id of the Hugging Face Hub; left out, it is the newest run. Functions that take long show their progress,
in a terminal and in a notebook; with `reporter=Reporter()` or `progress=silent` they do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imletriton.commands.eval import evaluate
    from imletriton.commands.fit import fit, plan
    from imletriton.commands.gen import generate
    from imletriton.commands.report import report
    from imletriton.commands.show import picture, show
    from imletriton.commands.status import status
    from imletriton.generator import Generator
    from imletriton.recipe import Recipe
    from imletriton.runs.run import Run
    from imletriton.search import NearestSearch, nearest, within
    from imletriton.share.explore import explore
    from imletriton.share.export.files import export_onnx, export_web
    from imletriton.share.project import project
    from imletriton.share.push import push
    from imletriton.share.video import video
    from imletriton.training.reporter import Reporter, silent

__version__ = "0.1.0"
__all__ = [
    "Generator",
    "NearestSearch",
    "Recipe",
    "Reporter",
    "Run",
    "evaluate",
    "explore",
    "export_onnx",
    "export_web",
    "fit",
    "generate",
    "nearest",
    "picture",
    "plan",
    "project",
    "push",
    "report",
    "show",
    "silent",
    "status",
    "video",
    "within",
]

_MODULES = {
    "Generator": "imletriton.generator",
    "NearestSearch": "imletriton.search",
    "Recipe": "imletriton.recipe",
    "Reporter": "imletriton.training.reporter",
    "Run": "imletriton.runs.run",
    "evaluate": "imletriton.commands.eval",
    "explore": "imletriton.share.explore",
    "export_onnx": "imletriton.share.export.files",
    "export_web": "imletriton.share.export.files",
    "fit": "imletriton.commands.fit",
    "generate": "imletriton.commands.gen",
    "nearest": "imletriton.search",
    "picture": "imletriton.commands.show",
    "plan": "imletriton.commands.fit",
    "project": "imletriton.share.project",
    "push": "imletriton.share.push",
    "report": "imletriton.commands.report",
    "show": "imletriton.commands.show",
    "silent": "imletriton.training.reporter",
    "status": "imletriton.commands.status",
    "video": "imletriton.share.video",
    "within": "imletriton.search",
}
# Functions with a `reporter` or a `progress`.
_SHOWING_PROGRESS = {"evaluate", "export_onnx", "export_web", "fit", "generate", "project", "video"}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: the help of the command line must not wait for PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    if name in _SHOWING_PROGRESS:
        value = import_module("imletriton.console").showing_progress(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]  # so that notebooks complete these names
