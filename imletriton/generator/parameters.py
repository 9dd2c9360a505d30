"""Mappings and decoders by name, and the parameters of the built-in ones.

The parameters stand apart from the modules only so that a recipe that uses them is checked without loading PyTorch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, field_validator

from imletriton.generator.blocks import parse_blocks
from imletriton.system.registry import Parameters, Registry, read_settings

# The papers' 28 blocks for images of 256x256 pixels.
PAPER_BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16,32x2,64m32,64x2,128m64,128x2,256m128"


class DecoderParameters(Parameters):
    """The parameters of a decoder, which decide the shape of the samples that it makes."""

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (3, height, width) for images, (2,) for points in the plane."""


class MLPMappingParameters(Parameters):
    # Linear layers, each followed by a leaky ReLU. As in StyleGAN, from which the papers take the mapping network.
    mapping_layers: int = Field(8, ge=1)


class NoMappingParameters(Parameters):
    pass


class VDVAEDecoderParameters(DecoderParameters):
    # Channels of the feature maps, at every resolution. The papers'.
    width: int = Field(384, ge=1)
    # Blocks and their resolutions in pixels, as `parse_blocks` reads them. The papers', for images of 256x256 pixels.
    blocks: str = PAPER_BLOCKS
    # Channels inside a block as a fraction of `width`. The papers'.
    bottleneck: float = Field(0.25, gt=0, le=1)

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, blocks: str) -> str:
        parse_blocks(blocks)
        return blocks

    def shape(self) -> tuple[int, ...]:
        resolution = parse_blocks(self.blocks)[-1].resolution
        return 3, resolution, resolution


class MLPDecoderParameters(DecoderParameters):
    # Units of each hidden layer. The default is that of the papers' decoder; recipes/toy2d.toml sets 64.
    width: int = Field(384, ge=1)

    def shape(self) -> tuple[int, ...]:
        return (2,)


MAPPINGS = Registry(
    "generator.mapping",
    package="imletriton.generator.mappings",
    group="imletriton.mappings",
    parameters={"mlp": MLPMappingParameters, "none": NoMappingParameters},
)
DECODERS = Registry(
    "generator.decoder",
    package="imletriton.generator.decoders",
    group="imletriton.decoders",
    parameters={"vdvae": VDVAEDecoderParameters, "mlp": MLPDecoderParameters},
)


def read_parameters(mapping: str, decoder: str, values: Mapping[str, Any]) -> tuple[BaseModel, DecoderParameters]:
    """Read the parameters of a mapping and a decoder, which stand side by side in a recipe's [generator] section.

    Args:
        mapping: The mapping's name.
        decoder: The decoder's name.
        values: The keys of the section besides latent_dim, mapping and decoder. Recipes and checkpoints used to hold
            the keys of every built-in mapping and decoder, so a key of one that was not chosen is ignored where it
            has its default value.

    Returns:
        The mapping's parameters and the decoder's.

    Raises:
        InputError: See `read_settings`.
    """
    choices = {MAPPINGS: mapping, DECODERS: decoder}
    chosen = {key for registry, name in choices.items() for key in registry.parameters(name).model_fields}
    defaults = [
        (key, field.default)
        for registry in choices
        for model in registry.built_in.values()
        for key, field in model.model_fields.items()
        if key not in chosen
    ]
    values = {key: value for key, value in values.items() if (key, value) not in defaults}
    mapping_settings, decoder_settings = read_settings(choices, values, ["latent_dim", "mapping", "decoder"])
    assert isinstance(decoder_settings, DecoderParameters)
    return mapping_settings, decoder_settings
