"""The recipes that come with imletriton, and the keys that a recipe may have: `imletriton recipes`."""

import contextlib
import itertools
import json
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imletriton.errors import InputError
from imletriton.recipe import CHOICES, DEPTH, Recipe, packaged_recipe, packaged_recipes
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
    """Load a recipe to describe it; one for pictures of one's own, which names none, with any others."""
    with contextlib.suppress(InputError):
        return Recipe.load(file)
    return Recipe.load(file, {"data.source": "pictures"})


def copy_recipe(name: str, out: str | Path | None = None) -> Path:
    """Copy a recipe that comes with imletriton, with its comments, to edit it.

    Args:
        name: The recipe, as `recipes` lists it.
        out: The file, or an existing folder for it; by default a file in the current folder that is named like the
            recipe's runs, such as dog.toml. A file that exists is never overwritten.

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


class RecipeKey(NamedTuple):
    """A key that a recipe may have, in words."""

    name: str  # with its section, as `fit` takes it: "train.batch_size"
    kind: str  # of its value
    default: str  # as in a recipe; "" where a recipe must have the key
    meaning: str


# Not a field of a model, as the blocks that follow from it take its place when a recipe is read.
DEPTH_KEY = RecipeKey(
    "generator.depth", "integer", str(DEPTH), 'For blocks = "auto": how many blocks the lowest resolutions have.'
)


def recipe_keys() -> list[RecipeKey]:
    """List every key that a recipe may have, section by section, as the models of the recipe describe them."""
    keys = []
    for name, field in Recipe.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            keys.append(_key(name, field))
            continue
        keys += [_key(f"{name}.{key}", inner) for key, inner in field.annotation.model_fields.items()]
        for registry in CHOICES:
            if registry.section != name:
                continue
            belongs: dict[RecipeKey, list[str]] = {}  # to which strategies, for example
            for choice, model in registry.known_parameters().items():
                for key, inner in model.model_fields.items():
                    belongs.setdefault(_key(f"{name}.{key}", inner), []).append(choice)
            keys += [
                key._replace(meaning=f"For {registry.field} {' or '.join(map(json.dumps, choices))}: {key.meaning}")
                for key, choices in belongs.items()
            ]
            keys += [DEPTH_KEY] if registry.key == "generator.decoder" else []
    return keys


def _key(name: str, field: FieldInfo) -> RecipeKey:
    default = "" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
    return RecipeKey(name, _kind(field.annotation), default, " ".join((field.description or "").split()))


def _kind(annotation: Any) -> str:
    """A type of a value in words."""
    words = {bool: "boolean", int: "integer", float: "number", str: "string"}
    if annotation in words:
        return words[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kind(arguments[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(json.dumps, arguments))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_kind, arguments))
    return f"list of {_kind(arguments[0])}"
