"""The interface of selection strategies."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn

from imletriton.search import Prepared
from imletriton.selection import parameters
from imletriton.selection.parameters import STRATEGIES


class Strategy(nn.Module, ABC):
    """Decides, before each epoch, which data points are due for a new neighbour and which samples they may take.

    A subclass sets `name` and defines `due`; everything else has a default. If it has parameters, it also sets
    `Parameters`. State that a resumed run needs must be in buffers. Defining a subclass registers its name;
    docs/strategies.md shows how `imletriton fit` finds a strategy of another package.

    Before each epoch, the trainer calls, in this order:

        due(epoch, distance)            If no data point is due, nothing more happens.
        needs_pool(due, epoch)          If true, a new pool is drawn, and pool_drawn(epoch) follows.
        reject_radius(points, samples)  Then every data point that is due takes its nearest admissible sample.
        latents_assigned(due, epoch, distance)

    `distance`, float32 [n], is d(x_i, T(z*_i)) of each data point as measured when it was last trained on, at most one
    epoch ago. It is infinite for a data point without a neighbour, which the trainer treats as due in any case. An
    interrupted epoch starts again, so `due` and `needs_pool` must not change any state.

    Args:
        n: The number of data points.
        settings: An instance of the class's `Parameters`.
    """

    name: ClassVar[str]
    Parameters: ClassVar[type[BaseModel]] = parameters.Parameters  # by default, a strategy has no parameters
    reuses_pool: ClassVar[bool] = False  # whether one pool serves several rounds, so that checkpoints must hold it

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        STRATEGIES.register(cls)

    def __init__(self, n: int, settings: BaseModel) -> None:
        super().__init__()
        self.n, self.settings = n, settings

    @abstractmethod
    def due(self, epoch: int, distance: Tensor) -> Tensor:
        """Return which data points are due for a new neighbour: bool [n]."""

    def needs_pool(self, due: Tensor, epoch: int) -> bool:
        """Return whether the data points that are due need a new pool; by default, always."""
        return True

    def pool_drawn(self, epoch: int) -> None:
        """Called after a new pool was drawn."""

    def reject_radius(self, points: Prepared, samples: Prepared) -> float:
        """Return the radius epsilon: samples closer than this to any data point are rejected. By default 0, for none.

        Args:
            points: Search features of the data points; `points.vectors` is float32 [n, d].
            samples: Search features of the whole pool; `samples.vectors` is float32 [m, d].
        """
        return 0.0

    def latents_assigned(self, due: Tensor, epoch: int, distance: Tensor) -> None:
        """Called after the data points that were due have got new latents z*_i, at these distances, float32 [n]."""

    def metrics(self) -> dict[str, float]:
        """Return the strategy's own numbers for the log, after each round."""
        return {}
