"""The generator T: a mapping network and a decoder, joined; and the latent codes that it is fed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imletriton.generator.latents import latent_codes
    from imletriton.generator.model import Generator

__all__ = ["Generator", "latent_codes"]

_MODULES = {"Generator": "model", "latent_codes": "latents"}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: a recipe is checked without PyTorch, which loads slowly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
