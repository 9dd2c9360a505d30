"""The generator T, which joins a mapping and a decoder, and its latent codes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imletriton.generator.parameters import DECODERS, MAPPINGS, Cost, DecoderParameters, MappingParameters
from imletriton.system.registry import Parameters

if TYPE_CHECKING:
    from imletriton.generator.decoders.base import Decoder
    from imletriton.generator.latents import latent_codes, latent_codes_at, latent_loop, slerp
    from imletriton.generator.mappings.base import Mapping
    from imletriton.generator.model import Generator

__all__ = [
    "DECODERS",
    "MAPPINGS",
    "Cost",
    "Decoder",
    "DecoderParameters",
    "Generator",
    "Mapping",
    "MappingParameters",
    "Parameters",
    "latent_codes",
    "latent_codes_at",
    "latent_loop",
    "slerp",
]

_MODULES = {
    "Decoder": "decoders.base",
    "Generator": "model",
    "Mapping": "mappings.base",
    "latent_codes": "latents",
    "latent_codes_at": "latents",
    "latent_loop": "latents",
    "slerp": "latents",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: a recipe is checked without PyTorch, which loads slowly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
