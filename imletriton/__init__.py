"""Train an image generator from scratch on a few dozen to a few hundred pictures, by IMLE.

recipe = imletriton.Recipe.load("recipes/faces.toml")
run = imletriton.fit(recipe)
images = imletriton.Generator.from_pretrained(run.path).sample(64, seed=0)
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imletriton.fitting import fit
    from imletriton.generator import Generator
    from imletriton.nearest import NearestSearch, nearest
    from imletriton.recipe import Recipe
    from imletriton.run import Run

__version__ = "0.1.0"
__all__ = ["Generator", "NearestSearch", "Recipe", "Run", "fit", "nearest"]

_HOMES = {
    "Generator": "generator",
    "NearestSearch": "nearest",
    "Recipe": "recipe",
    "Run": "run",
    "fit": "fitting",
    "nearest": "nearest",
}


class _LazyPackage(ModuleType):
    """Imports a public name where it is first used: `imletriton --help` must not wait for PyTorch."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'imletriton' has no attribute {name!r}")
        return getattr(import_module(f"imletriton.{_HOMES[name]}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing nearest.py would put the module in the place of the function of that name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _LazyPackage
if (Path(__file__).parents[1] / "kernels" / "launch.py").exists():  # a checkout, which need not be installed
    __path__.append(str(Path(__file__).parents[1]))
