"""Selection strategies: which data points get a new neighbour, and which samples they may take."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imletriton.selection.parameters import STRATEGIES, Parameters

if TYPE_CHECKING:
    from imletriton.selection.adaptive import Adaptive
    from imletriton.selection.adaptive_rejection import AdaptiveRejection
    from imletriton.selection.base import Strategy
    from imletriton.selection.rejection import Rejection
    from imletriton.selection.vanilla import Vanilla

__all__ = ["STRATEGIES", "Adaptive", "AdaptiveRejection", "Parameters", "Rejection", "Strategy", "Vanilla"]

_MODULES = {
    "Adaptive": "adaptive",
    "AdaptiveRejection": "adaptive_rejection",
    "Rejection": "rejection",
    "Strategy": "base",
    "Vanilla": "vanilla",
}


def __getattr__(name: str) -> Any:
    """Import a strategy where it is first used: a recipe is checked without PyTorch, which loads slowly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
