"""The interface that a selection strategy fills."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel
from torch import Tensor, nn

from imletriton.selection import parameters
from imletriton.selection.register import STRATEGIES


class Strategy(nn.Module, ABC):
    """Decides, before each epoch, which data points are due for a new neighbour and what they may take.

    A subclass gives `name` and fills `due`; the rest has defaults. Defining it registers it under its
    name; so that `imletriton fit` finds it, its package names it in the entry points "imletriton.strategies". State
    that a resumed run needs lies in buffers. The trainer calls, before each epoch:
        due(epoch, distance)      -> bool [n]; nothing more happens where none is
        needs_pool(due, epoch)    -> draw a new pool for them? If so, pool_drawn(epoch) follows
        reject_radius(points, samples)
        (the nearest admissible samples of the pool are found, and assigned)
        assigned(due, epoch, distance)
    where distance, float32 [n], is the newest known d(x_i, T(z*_i)) of each data point, from when it was last trained
    on, an epoch ago at most; inf where it has no neighbour yet: it is due then, whatever the strategy says. An epoch
    that was interrupted starts again, so `due` and `needs_pool` change no state. docs/strategies.md has an example to
    start from.
    """

    name: ClassVar[str]
    Parameters: ClassVar[type[BaseModel]] = parameters.Parameters  # its fields are the keys; none by default
    # True: the pool outlives its round, so checkpoints keep it.
    reuses_pool: ClassVar[bool] = False

    def __init_subclass__(cls, register: bool = True) -> None:
        if register:
            STRATEGIES[cls.name] = cls

    def __init__(self, n: int, settings: BaseModel) -> None:
        super().__init__()
        self.n, self.settings = n, settings

    @abstractmethod
    def due(self, epoch: int, distance: Tensor) -> Tensor:
        """Which data points are due for a new neighbour: bool [n]."""

    def needs_pool(self, due: Tensor, epoch: int) -> bool:
        """Whether those due need a pool drawn anew; by default always."""
        return True

    def pool_drawn(self, epoch: int) -> None:
        """Take note that the pool was drawn anew."""

    def reject_radius(self, points: Tensor, samples: Tensor) -> float:
        """Samples closer than this to any data point are left out; 0: none are.

        points float32 [n, d], samples float32 [m, d]: search features of the data and of the whole pool.
        """
        return 0.0

    def assigned(self, due: Tensor, epoch: int, distance: Tensor) -> None:
        """Take note that the points due have new neighbours, at these distances."""

    def figures(self) -> dict[str, float]:
        """What to log after a round."""
        return {}
