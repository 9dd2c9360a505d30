"""The register of strategies by name. For their parameters, which check a recipe, PyTorch is not loaded."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pydantic import BaseModel

from imletriton.errors import InputError, suggestion
from imletriton.selection.parameters import BUILT_IN

if TYPE_CHECKING:
    from imletriton.selection.base import Strategy

ENTRY_POINTS = "imletriton.strategies"  # the group in which another package names its strategies
STRATEGIES: dict[str, type["Strategy"]] = {}  # those whose class is defined


def known_parameters() -> dict[str, type[BaseModel]]:
    """The parameters of the built-in strategies and of those whose class is defined, by the strategies' names."""
    return BUILT_IN | {name: strategy.Parameters for name, strategy in STRATEGIES.items()}


def find_parameters(name: str) -> type[BaseModel]:
    """The parameters of the strategy of a name; only for another package's is PyTorch loaded.

    Raises InputError as `find_strategy` does.
    """
    known = known_parameters()
    return known[name] if name in known else find_strategy(name).Parameters


def find_strategy(name: str) -> type["Strategy"]:
    """The strategy of a name, loaded from an installed package where one has an entry point for it.

    Raises InputError, naming the nearest known one, or why the package's cannot be loaded.
    """
    if name in BUILT_IN and name not in STRATEGIES:
        import_module(f"imletriton.selection.{name.replace('-', '_')}")  # defining the class registers it
    for entry in entry_points(group=ENTRY_POINTS, name=name) if name not in STRATEGIES else ():
        try:
            entry.load()
        except Exception as error:  # another's code: whatever fails in it, the user must hear whose it is
            raise InputError(f"selection.strategy {name!r} cannot be loaded from {entry.value}: {error}.") from error
    if name in STRATEGIES:
        return STRATEGIES[name]
    raise InputError(f"selection.strategy {name!r} is not known: {suggestion(name, sorted(known_parameters()))}")
