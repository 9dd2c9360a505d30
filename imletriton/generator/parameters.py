"""Mappings and decoders by name, and the parameters of the built-in ones; read without PyTorch, which loads slowly."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, field_validator

from imletriton.generator.blocks import MAX_PATCH, parse_blocks
from imletriton.system.registry import Parameters, Registry, read_settings

# The papers' 28 blocks for images of 256x256 pixels.
PAPER_BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16,32x2,64m32,64x2,128m64,128x2,256m128"
MAX_LATENT_DIM, MAX_WIDTH = 2**20, 2**16  # far beyond real generators


class Cost(NamedTuple):
    """The memory that a mapping or a decoder takes."""

    weights: int = 0  # how many
    kept: int = 0  # bytes per sample that a training step keeps for its backward pass
    working: int = 0  # bytes per sample that a forward pass takes


class MappingParameters(Parameters):
    """The parameters of a mapping."""

    def cost(self, latent_dim: int, bfloat16: bool) -> Cost:
        """The memory that the mapping takes; nothing by default, so that it does not count when a recipe is checked."""
        return Cost()


class DecoderParameters(Parameters):
    """The parameters of a decoder, which decide the shape of its samples."""

    def cost(self, style_dim: int, bfloat16: bool) -> Cost:
        """The memory that the decoder takes; nothing by default, so that it does not count when a recipe is checked."""
        return Cost()

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (3, height, width) for images, (2,) for points in the plane."""


class MLPMappingParameters(MappingParameters):
    mapping_layers: int = Field(8, ge=1, le=1000)
    """Linear layers of the mapping network, each followed by a leaky ReLU. StyleGAN's value, as in the papers."""

    def cost(self, latent_dim: int, bfloat16: bool) -> Cost:
        layers = self.mapping_layers
        return Cost(layers * latent_dim * (latent_dim + 1), 8 * layers * latent_dim, 8 * latent_dim)


class NoMappingParameters(MappingParameters):
    pass


class VDVAEDecoderParameters(DecoderParameters):
    width: int = Field(384, ge=1, le=MAX_WIDTH)
    """Channels of the feature maps, at every resolution. The papers' value."""
    blocks: str = Field(PAPER_BLOCKS, max_length=10_000)
    """Blocks by resolution in pixels: RxK is K blocks at R, RmS upsamples from S to R. The papers', for 256x256 pixels.
    "auto" derives them from data.resolution and generator.depth (4 unless set, which gives the papers' at 256)."""
    bottleneck: float = Field(0.25, gt=0, le=1)
    """Channels inside a block as a fraction of `width`. The papers' value."""
    start: Literal["constant", "style"] = "constant"
    """Input of the first block: "constant", learned feature maps that all samples share (the papers'), or "style", the
    same plus a linear function of the style, so that samples differ in layout from the start."""
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    """Upsampling in the skip connections of blocks: "nearest" (the papers'), or "bilinear" for smoother outlines."""
    patch: int = Field(1, ge=1, le=MAX_PATCH)
    """Side in pixels of the square that one position of the last feature maps draws in the image. With 1 (the papers'),
    the blocks end at the resolution of the images; with 2, at half of it, where a block takes a quarter of the time."""

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, blocks: str) -> str:
        parse_blocks(blocks)
        return blocks

    def cost(self, style_dim: int, bfloat16: bool) -> Cost:
        width, middle, blocks = self.width, max(1, round(self.width * self.bottleneck)), parse_blocks(self.blocks)
        first = width * blocks[0].resolution ** 2
        colours = 3 * self.patch**2
        weights = first + (2 + colours) * width + colours + (style_dim + 1) * len(blocks) * 2 * width
        if self.start == "style":
            weights += (style_dim + 1) * first
        kept = working = 0
        for resolution, upsample_from in blocks:
            pixels, coarse, kernel = resolution**2, (upsample_from or resolution) ** 2, 9 if resolution > 2 else 1
            weights += 2 * middle * (width + kernel * middle) + 3 * middle + width
            # In the order of the forward pass: y - mean, gelu(y) and y; conv, gelu; the same twice, or more upsampled.
            inside = 2 * coarse + (5 if upsample_from else 4) * pixels
            kept += (8 if bfloat16 else 12) * width * coarse + (2 if bfloat16 else 4) * middle * inside
            working = max(working, 16 * width * coarse + 12 * middle * pixels)
        return Cost(weights, kept, working)

    def shape(self) -> tuple[int, ...]:
        resolution = parse_blocks(self.blocks)[-1].resolution * self.patch
        return 3, resolution, resolution


class MLPDecoderParameters(DecoderParameters):
    width: int = Field(384, ge=1, le=MAX_WIDTH)
    """Units of each hidden layer."""

    def cost(self, style_dim: int, bfloat16: bool) -> Cost:
        weights = self.width * (style_dim + 2 * self.width + 5) + 2
        return Cost(weights, 24 * self.width, 8 * self.width)

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


def generator_cost(latent_dim: int, mapping: BaseModel, decoder: DecoderParameters, bfloat16: bool) -> Cost:
    """Return what a mapping and a decoder with these parameters take together, if a style is as long as z."""
    first = mapping.cost(latent_dim, bfloat16) if isinstance(mapping, MappingParameters) else Cost()
    second = decoder.cost(latent_dim, bfloat16)
    return Cost(*(a + b for a, b in zip(first, second, strict=True)))


def read_parameters(mapping: str, decoder: str, values: Mapping[str, Any]) -> tuple[BaseModel, DecoderParameters]:
    """Read the parameters of a mapping and a decoder, given by name, from the same values; see `read_settings`."""
    choices = {MAPPINGS: mapping, DECODERS: decoder}
    mapping_settings, decoder_settings = read_settings(choices, values, ["latent_dim", "mapping", "decoder"])
    assert isinstance(decoder_settings, DecoderParameters)
    return mapping_settings, decoder_settings
