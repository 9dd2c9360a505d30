"""The built-in strategies' parameters, by the strategies' names: a recipe is checked by them without PyTorch."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Parameters(BaseModel):
    """A strategy's parameters: the keys it adds to a recipe's [selection] section."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Vanilla(Parameters):
    refresh: PositiveInt = 10  # epochs between new neighbours


class Adaptive(Parameters):
    delta: float = Field(0.98, ge=0, lt=1)
    staleness: PositiveInt = 5
    forced_refresh: PositiveInt = 25
    max_pool_age: PositiveInt = 30


class Rejecting(Parameters):
    epsilon: float | Literal["auto"] = 0.15  # rejection radius, among search features

    @field_validator("epsilon", mode="before")
    @classmethod
    def _check_epsilon(cls, epsilon: Any) -> Any:
        if epsilon != "auto" and (type(epsilon) not in (float, int) or not epsilon >= 0):
            raise ValueError(f'{epsilon!r} is neither a distance of 0 or more nor "auto"')
        return epsilon if epsilon == "auto" else float(epsilon)


class Rejection(Rejecting, Vanilla):
    pass


class AdaptiveRejection(Rejecting, Adaptive):
    pass


BUILT_IN: dict[str, type[BaseModel]] = {
    "vanilla": Vanilla,
    "adaptive": Adaptive,
    "rejection": Rejection,
    "adaptive-rejection": AdaptiveRejection,
}
