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
    `Parameters`. Whatever a resumed run needs to know has to be held in buffers. Defining a subclass makes its name
    known; docs/strategies.md shows how `imletriton fit` finds a strategy of another package.

    Before each epoch, the trainer calls, in this order:

        due(epoch, distance)            If no data point is due, nothing more happens.
        needs_pool(due, epoch)          If true, a new pool is drawn, and pool_drawn(epoch) follows.
        reject_radius(points, samples)  Then every data point that is due takes its nearest admissible sample.
        latents_assigned(due, epoch, distance)

    `distance`, float32 [n], is the newest known d(x_i, T(z*_i)) of each data point, measured when it was last trained
    on, at most one epoch ago. It is infinite for a data point that has no neighbour yet, and the trainer treats such
    a data point as due whatever the strategy says. An epoch that was interrupted starts again, so `due` and
    `needs_pool` must not change any state.

    Args:
        n: The number of data points.
        settings: An instance of the class's `Parameters`.
    """

    name: ClassVar[str]
    Parameters: ClassVar[type[BaseModel]] = parameters.Parameters  # by default, a strategy has no parameters
    reuses_pool: ClassVar[bool] = False  # True if one pool serves several rounds, so that checkpoints must keep it

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        STRATEGIES.register(cls)

    def __init__(self, n: int, settings: BaseModel) -> None:
        super().__init__()
        self.n, self.settings = n, settings

    @abstractmethod
    def due(self, epoch: int, distance: Tensor) -> Tensor:
        """Tell which data points are due for a new neighbour: bool [n]."""

    def needs_pool(self, due: Tensor, epoch: int) -> bool:
        """Tell whether the data points that are due need a new pool; by default they always do."""
        return True

    def pool_drawn(self, epoch: int) -> None:
        """Take note that a new pool was drawn."""

    def reject_radius(self, points: Prepared, samples: Prepared) -> float:
        """Return the distance below which samples are rejected; by default 0, which rejects none.

        Args:
            points: Search features of the data points, prepared for searches; `points.vectors` is float32 [n, d].
            samples: Search features of the whole pool, likewise; `samples.vectors` is float32 [m, d].

        Returns:
            The radius epsilon: a sample closer than this to any data point is left out of the pool.
        """
        return 0.0

    def latents_assigned(self, due: Tensor, epoch: int, distance: Tensor) -> None:
        """Take note that the data points that were due have new latents z*_i, which lie at these distances."""

    def metrics(self) -> dict[str, float]:
        """Return the strategy's own numbers for the log; called after each round."""
        return {}
