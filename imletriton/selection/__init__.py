"""Selection strategies: which data points get a new neighbour, and which samples they may take."""

from imletriton.selection.adaptive import Adaptive
from imletriton.selection.adaptive_rejection import AdaptiveRejection
from imletriton.selection.base import STRATEGIES, Parameters, Strategy, find_strategy
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
