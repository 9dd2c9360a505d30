"""Classes that a recipe chooses by name: a strategy, a mapping or a decoder, of this package or of another one.

Each has a pydantic model of parameters, whose fields are further keys of the recipe's section. Needs no PyTorch, so
that recipes are checked without waiting for it.
"""

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from imletriton.errors import InputError, suggestion

MANY, LARGE = 10**9, 1e6  # bounds of whole and of other numbers in recipes, far beyond real ones

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlong, _SHORT.maxstring, _SHORT.maxother = 2, 40, 120, 120


def shown(value: object) -> str:
    """A value of a recipe for messages: on one line, and never long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python's, about a whole number of more than 4,300 digits
        return "a number of thousands of digits"


class Parameters(BaseModel):
    """Base class of parameters: a field is a key of the recipe, and the docstring below it says what it means."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Registry:
    """The classes that a key of the recipe can name.

    Args:
        key: The key of the recipe, such as "generator.mapping".
        package: The package with a module for each built-in class, named as the class with underscores for dashes. So
            another class needs nothing but its file.
        group: The group of entry points with which other packages offer classes.
        parameters: The parameters of built-in classes by name. A class may be missing here; if it is not, recipes with
            it are checked without loading PyTorch.
    """

    def __init__(self, key: str, package: str, group: str, parameters: Mapping[str, type[BaseModel]]) -> None:
        self.key, self.package, self.group = key, package, group
        self.section, self.field = key.split(".")
        self.built_in = dict(parameters)
        self.classes: dict[str, type[Any]] = {}  # the classes that are defined so far

    def register(self, cls: type[Any]) -> None:
        """Register a class under its `name`, unless that is inherited."""
        if "name" in vars(cls):
            self.classes[cls.name] = cls

    def find(self, name: str) -> type[Any]:
        """Find a class by its name: one that is defined already, a module in the package, or an entry point.

        Raises:
            InputError: No class has that name (the message suggests a similar one), or the package that offers it
                cannot be loaded.
        """
        if name not in self.classes:
            module = name.replace("-", "_")
            if module.isidentifier() and find_spec(f"{self.package}.{module}"):
                import_module(f"{self.package}.{module}")  # defining the class registers it
        if name not in self.classes:
            self._load_entry_point(name)
        if name not in self.classes:
            offered = {entry.name for entry in entry_points(group=self.group)}
            names = sorted({*self.built_in, *self.classes, *offered})
            raise InputError(f"{self.key} {shown(name)} is not known: {suggestion(name, names)}")
        return self.classes[name]

    def _load_entry_point(self, name: str) -> None:
        entry = next(iter(entry_points(group=self.group, name=name)), None)
        if entry is None:
            return
        failed = f"{self.key} {name!r} cannot be loaded from {entry.value}"
        try:
            entry.load()
        except Exception as error:  # another package's code may fail in any way
            raise InputError(f"{failed}: {error}.") from error
        if name not in self.classes:
            raise InputError(f"{failed}: it defines no class with name = {name!r}.")

    def parameters(self, name: str) -> type[BaseModel]:
        """The parameters of a class by its name; loads the class only if needed. Raises InputError as `find` does."""
        parameters = self.known_parameters().get(name)
        return parameters or self.find(name).Parameters

    def known_parameters(self) -> dict[str, type[BaseModel]]:
        """The parameters of the built-in classes, and of those defined so far, by name."""
        return self.built_in | {name: cls.Parameters for name, cls in self.classes.items()}


def read_settings(
    choices: Mapping[Registry, str], values: Mapping[str, Any], section_keys: Iterable[str]
) -> list[BaseModel]:
    """Read the parameters of the classes that are chosen in one section of a recipe.

    Args:
        choices: The name chosen in each registry, such as {MAPPINGS: "mlp", DECODERS: "vdvae"}.
        values: The keys of the section that are parameters.
        section_keys: The section's other keys, which no class may use.

    Returns:
        The parameters in the order of `choices`, with defaults filled in.

    Raises:
        InputError: A name or a key is unknown, a value is wrong, or two classes have the same key.
    """
    models = {registry: registry.parameters(name) for registry, name in choices.items()}
    section = next(iter(choices)).section
    owners = dict.fromkeys(section_keys, f"section [{section}]")
    for registry, name in choices.items():
        for key in models[registry].model_fields:
            if key in owners:
                both = f"{owners[key]} and {registry.field} {name!r}"
                raise InputError(f"{section}.{key} is a key of both {both}: one of them has to rename it.")
            owners[key] = f"{registry.field} {name!r}"
    faults = [_unknown_key(f"{section}.{_plain(key)}", owners, choices) for key in values if key not in owners]
    settings = []
    for model in models.values():
        try:
            settings.append(model.model_validate({k: v for k, v in values.items() if k in model.model_fields}))
        except ValidationError as error:
            faults += explain(error, [section])
    if faults:
        raise InputError(one_sentence(faults))
    return settings


def _plain(key: str) -> str:
    """A key, quoted if TOML requires that."""
    return key if re.fullmatch(r"[\w-]{1,120}", key, re.ASCII) else shown(key)


def _unknown_key(key: str, known: Iterable[str], choices: Mapping[Registry, str]) -> str:
    """Say which other class a key belongs to, or that it is not a key."""
    last = key.rpartition(".")[2]
    for registry, name in choices.items():
        others = [repr(other) for other, model in registry.known_parameters().items() if last in model.model_fields]
        if others:
            return f"{key} is not a key of {registry.field} {name!r}: it belongs to {' and '.join(others)}"
    return no_key(key, known)


def no_key(key: str, known: Iterable[str]) -> str:
    """Say that a key, such as "train.sed", is unknown, and suggest the most similar one."""
    names = list(known)
    nearest = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
    return f"{key} is not a key; " + (f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(names)}")


def explain(
    error: ValidationError, path: Iterable[str] = (), known: Callable[[list[str]], Iterable[str]] = lambda path: ()
) -> list[str]:
    """What is wrong according to pydantic, one phrase for each key.

    Args:
        error: The error of a model.
        path: The keys that lead to the model in the recipe, such as ["generator"].
        known: Returns the known keys at a path.
    """
    faults = []
    for fault in error.errors():
        keys = [*path, *(_plain(str(part)) for part in fault["loc"])]
        key = ".".join(keys)
        if fault["type"] == "extra_forbidden":
            faults.append(no_key(key, known(keys[:-1])))
        elif fault["type"] == "missing":
            faults.append(f"{key} is missing")
        elif fault["type"] == "value_error":
            reason = str(fault["ctx"]["error"])
            faults.append(f"{key}: {reason}" if key else reason)
        else:
            value = fault["input"]
            message = (fault["msg"][0].lower() + fault["msg"][1:]).replace("valid tuple", "list")  # as TOML calls it
            faults.append(f"{key}: {message}" if isinstance(value, dict) else f"{key} = {shown(value)}: {message}")
    return faults


def one_sentence(faults: list[str]) -> str:
    """Join phrases into one sentence."""
    return "; ".join(faults).rstrip(".?") + ("?" if faults[-1].endswith("?") else ".")
