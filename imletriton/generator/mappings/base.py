"""The interface of mappings."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn

from imletriton.generator.parameters import MAPPINGS
from imletriton.system import registry


class Mapping(nn.Module, ABC):
    """Maps a latent code z to the style w that the decoder gets.

    A subclass sets `name` and defines `forward`. If it has parameters, it also sets `Parameters`. If w has another
    dimension than z, it sets `self.style_dim`. Optionally, it defines `autocast_layers`, which saves converting weights
    in every call. Defining a subclass registers its name; docs/extending.md has an example.

    Args:
        latent_dim: The dimension of z.
        settings: An instance of the class's `Parameters`.
    """

    name: ClassVar[str]
    Parameters: ClassVar[type[BaseModel]] = registry.Parameters  # by default, a mapping has no parameters

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        MAPPINGS.register(cls)

    def __init__(self, latent_dim: int, settings: BaseModel) -> None:
        super().__init__()
        self.settings, self.style_dim = settings, latent_dim

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Map latent codes z, float32 [b, latent_dim], to styles w, [b, style_dim]."""

    def autocast_layers(self) -> Iterable[nn.Module]:
        """Return the layers whose weights training may keep in bfloat16; see `Decoder.autocast_layers`."""
        return ()
