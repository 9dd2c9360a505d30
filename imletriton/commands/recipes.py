"""The recipes that come with imletriton: what `imletriton recipes` lists and copies."""

import contextlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from imletriton.errors import InputError
from imletriton.recipe import Recipe, packaged_recipe, packaged_recipes
from imletriton.runs.run import write_whole

METHODS = {"vanilla": "vanilla IMLE", "adaptive": "Adaptive IMLE", "rejection": "RS-IMLE"}


class PackagedRecipe(NamedTuple):
    """A recipe that comes with imletriton, in short."""

    name: str  # by which `fit` takes it, such as "adaptive/dog"
    method: str
    resolution: int | None  # pixels a side; None for points in the plane
    about: str  # the first sentence of its file


def recipes() -> list[PackagedRecipe]:
    """List the recipes that come with imletriton, as their files describe them."""
    listed = []
    for name, file in packaged_recipes().items():
        recipe = _load(file)
        method = METHODS.get(recipe.selection.strategy, recipe.selection.strategy)
        comment = itertools.takewhile(lambda line: line.startswith("#"), file.read_text("utf-8").splitlines())
        # The first sentence ends before a capital letter, which "et al. 2020" does not, or with a line.
        text = "\n".join(line.lstrip("# ") for line in comment)
        first = re.split(r"[.:]\n|\. (?=[A-Z])|\.$", text)[0].replace("\n", " ")
        resolution = recipe.data.resolution if len(recipe.data.shape) == 3 else None
        listed.append(PackagedRecipe(name, method, resolution, first))
    return listed


def _load(file: Path) -> Recipe:
    """Load a recipe to describe it. One for pictures of one's own names none, so that any will do."""
    with contextlib.suppress(InputError):
        return Recipe.load(file)
    return Recipe.load(file, {"data.source": "pictures"})


def copy_recipe(name: str, out: str | Path | None = None) -> Path:
    """Copy a recipe that comes with imletriton, with its comments, to be edited.

    Args:
        name: The recipe, as `recipes` lists it.
        out: The file, or a folder for it, which must exist; by default a file in the current folder that is named as
            the recipe's runs are, such as dog.toml. No file is ever overwritten.

    Returns:
        The file.

    Raises:
        InputError: No recipe has this name, or the file exists already or cannot be written.
    """
    source = packaged_recipe(name)
    path = Path(out) if out else Path()
    if path.is_dir():
        path /= f"{_load(source).name}.toml"
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists already: remove it, or name another file.")
    text = source.read_bytes()
    try:
        write_whole(path, lambda file: file.write_bytes(text))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): name another file.") from error
    return path
