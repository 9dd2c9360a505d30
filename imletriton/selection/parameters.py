"""Strategies by name, and the parameters of the built-in ones; read without PyTorch, which loads slowly."""

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from imletriton.system import registry
from imletriton.system.registry import LARGE, MANY, Registry, shown


class Parameters(registry.Parameters):
    """The parameters of a strategy, which decide on the size of its pools."""

    def pool_size(self, whole: int) -> int:
        """Return m, the number of samples in a pool, if a recipe asks for `whole` samples for all data points."""
        return whole


class VanillaParameters(Parameters):
    refresh: int = Field(10, ge=1, le=MANY)
    """Epochs that a data point keeps its selected sample. RS-IMLE's code has 30."""
    share: float = Field(1.0, gt=0, le=1)
    """Largest share of the data points that one round refreshes. Below 1, rounds come more often, and their pools are
    smaller in proportion."""

    @field_validator("share")
    @classmethod
    def _check_share(cls, share: float, others: ValidationInfo) -> float:
        rounds = math.ceil(1 / share)
        if rounds > others.data.get("refresh", rounds):
            raise ValueError(
                f"{share} takes {rounds} rounds, but there is at most one round per epoch: make share larger, or "
                f"selection.refresh at least {rounds}"
            )
        return share

    @property
    def rounds(self) -> int:
        """The number of rounds, in `refresh` epochs, in which all data points are refreshed once."""
        return math.ceil(1 / self.share)

    def pool_size(self, whole: int) -> int:
        return -(-whole // self.rounds)


class AdaptiveParameters(Parameters):
    delta: float = Field(0.98, ge=0, lt=1)
    """A data point is due once its distance is at most `delta` times its threshold. The Adaptive IMLE paper's value."""
    staleness: int = Field(5, ge=1, le=MANY)
    """Fewest epochs that a data point keeps its selected sample. From the authors' scripts."""
    forced_refresh: int = Field(25, ge=1, le=MANY)
    """Most epochs that a data point keeps its selected sample. The authors' scripts have 15, 25 or 30."""
    max_pool_age: int = Field(30, ge=1, le=MANY)
    """Most epochs that a pool is used."""


class RejectingParameters(Parameters):
    epsilon: float | Literal["auto"] = 0.15
    """Rejection radius, a distance between search features; "auto" finds one for each pool. RS-IMLE has 0.15."""

    @field_validator("epsilon", mode="before")
    @classmethod
    def _check_epsilon(cls, epsilon: Any) -> Any:
        if epsilon != "auto" and (type(epsilon) not in (float, int) or not 0 <= epsilon <= LARGE):
            raise ValueError(f'{shown(epsilon)} is neither a distance from 0 to {LARGE:.0f} nor "auto"')
        return epsilon if epsilon == "auto" else float(epsilon)


class RejectionParameters(RejectingParameters, VanillaParameters):
    pass


class AdaptiveRejectionParameters(RejectingParameters, AdaptiveParameters):
    pass


STRATEGIES = Registry(
    "selection.strategy",
    package="imletriton.selection",
    group="imletriton.strategies",
    parameters={
        "vanilla": VanillaParameters,
        "adaptive": AdaptiveParameters,
        "rejection": RejectionParameters,
        "adaptive-rejection": AdaptiveRejectionParameters,
    },
)
