"""Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE.

recipe = imletriton.Recipe.load("recipes/faces.toml")
run = imletriton.fit(recipe)
images = imletriton.Generator.from_pretrained(run.path).sample(64, seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imletriton.commands.fit import fit
    from imletriton.commands.plan import plan
    from imletriton.commands.status import status
    from imletriton.generator import Generator
    from imletriton.recipe import Recipe
    from imletriton.runs.run import Run
    from imletriton.search import NearestSearch, nearest, within

__version__ = "0.1.0"
__all__ = ["Generator", "NearestSearch", "Recipe", "Run", "fit", "nearest", "plan", "status", "within"]

_MODULES = {
    "Generator": "imletriton.generator",
    "NearestSearch": "imletriton.search",
    "Recipe": "imletriton.recipe",
    "Run": "imletriton.runs.run",
    "fit": "imletriton.commands.fit",
    "nearest": "imletriton.search",
    "plan": "imletriton.commands.plan",
    "status": "imletriton.commands.status",
    "within": "imletriton.search",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: the help of the command line must not wait for PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
