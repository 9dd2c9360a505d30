"""Selection strategies: which data points get a new neighbour, and which samples they may take."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imletriton.selection.parameters import Parameters

if TYPE_CHECKING:
    from imletriton.selection.adaptive import Adaptive
    from imletriton.selection.adaptive_rejection import AdaptiveRejection
    from imletriton.selection.base import Strategy
    from imletriton.selection.register import STRATEGIES, find_strategy
    from imletriton.selection.rejection import Rejection
    from imletriton.selection.vanilla import Vanilla

__all__ = [
    "STRATEGIES",
    "Adaptive",
    "AdaptiveRejection",
    "Parameters",
    "Rejection",
    "Strategy",
    "Vanilla",
    "find_strategy",
]

_HOMES = {
    "STRATEGIES": "register",
    "Adaptive": "adaptive",
    "AdaptiveRejection": "adaptive_rejection",
    "Rejection": "rejection",
    "Strategy": "base",
    "Vanilla": "vanilla",
    "find_strategy": "register",
}


def __getattr__(name: str) -> Any:
    """Import the strategies where one is first used: a recipe is checked without PyTorch, which loads slowly."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {home: import_module(f"{__name__}.{home}") for home in _HOMES.values()}  # all, which registers them
    return getattr(homes[_HOMES[name]], name)
