"""The sections of a recipe as frozen, validated models. The docstring below a key is its description.

The keys of strategies are in imletriton/selection/parameters.py, those of mappings and decoders in
imletriton/generator/parameters.py.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from imletriton.errors import InputError
from imletriton.generator.blocks import MAX_RESOLUTION
from imletriton.generator.parameters import (
    DECODERS,
    MAPPINGS,
    MAX_LATENT_DIM,
    Cost,
    DecoderParameters,
    generator_cost,
    read_parameters,
)
from imletriton.selection.parameters import STRATEGIES, Parameters
from imletriton.system.registry import LARGE, MANY, Registry, read_settings, shown

MAX_SAMPLES = 10**6  # to write or to measure in one go
Beta = Annotated[float, Field(ge=0, lt=1)]


class SectionConfig(BaseModel):
    """A section of the recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ChoosingSection(SectionConfig):
    """A section in which some keys choose classes by name; its other keys are the parameters of these classes."""

    model_config = ConfigDict(extra="allow")
    choices: ClassVar[tuple[Registry, ...]]

    @model_validator(mode="before")
    @classmethod
    def _read_parameters(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {key: value for key, value in values.items() if key in cls.model_fields}
        others = {key: value for key, value in values.items() if key not in fields}
        defaults = {key: field.default for key, field in cls.model_fields.items()}
        chosen = {registry: str((defaults | fields)[registry.field]) for registry in cls.choices}
        for settings in read_settings(chosen, others, cls.model_fields):
            fields |= settings.model_dump()
        return fields

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of what was chosen."""
        return dict(self.model_extra or {})


class DataConfig(SectionConfig):
    """[data]: what is trained on."""

    source: str = Field(max_length=4096, pattern=r"^[^\x00]+$")
    """Training data: a folder of images (relative to the working directory), or a built-in set, "faces" or "toy2d"."""
    resolution: int = Field(256, ge=4, le=MAX_RESOLUTION)
    """Side in pixels to which images are cropped and resized; ignored by toy2d. The papers have 256."""
    mirror: bool = False
    """Whether to train on the mirror image of every image too, which doubles n."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Share of the data points that is held out of training, for the metric "backtracking"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one data point: (3, resolution, resolution) for images, (2,) for points in the plane."""
        return (2,) if self.source == "toy2d" else (3, self.resolution, self.resolution)


class GeneratorConfig(ChoosingSection):
    """[generator]: the mapping network and the decoder."""

    choices = (MAPPINGS, DECODERS)

    latent_dim: int = Field(1024, ge=1, le=MAX_LATENT_DIM)
    """Dimension of a latent code. The papers' value."""
    mapping: str = "mlp"
    """Mapping network: "mlp" (StyleGAN's, as in the papers), "none", or another one by name."""
    decoder: str = "vdvae"
    """Decoder: "vdvae" (the papers') for images, "mlp" for points in the plane, or another one by name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, height, width) for images, (2,) for points in the plane."""
        return self._parameters[1].shape()

    @property
    def _parameters(self) -> tuple[BaseModel, DecoderParameters]:
        """The parameters of the mapping and of the decoder."""
        return read_parameters(self.mapping, self.decoder, self.parameters)

    def cost(self, bfloat16: bool) -> Cost:
        """The memory that the generator takes, with bfloat16 or float32 matmuls."""
        return generator_cost(self.latent_dim, *self._parameters, bfloat16)

    @property
    def makes_images(self) -> bool:
        """Whether the samples are images, rather than points in the plane."""
        return len(self.shape) == 3


class DistanceConfig(SectionConfig):
    """[distance]: the training loss, and the space in which nearest neighbours are searched."""

    kind: Literal["lpips", "pixels", "bands", "euclidean"] = "lpips"
    """Distance: "lpips" (the papers'), "pixels" or "bands" for images, "euclidean" for points in the plane."""
    backbone: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network whose features LPIPS compares. The papers have VGG16."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the networks for LPIPS and for the FID in the log. "random" needs no download, and is for tests."""
    pixel_weight: float = Field(0.1, ge=0, le=LARGE)
    """Weight of the mean squared pixel difference that is added to LPIPS. From the authors' code."""
    network_weight: float = Field(0.0, ge=0, le=LARGE)
    """Weight of the difference of network features that is added to "bands"; 0 leaves it out. From no paper."""
    network: Literal["untrained", "efficientnet"] = "untrained"
    """Network of `network_weight`: "untrained", or "efficientnet" (Lite0, trained on ImageNet). From no paper."""
    projection_dim: int = Field(800, ge=1, le=MANY)
    """Dimension of the search space, into which features are randomly projected. From the authors' code."""
    search: Literal["features", "pixels"] = "features"
    """What is compared in the search: the features of `kind`, as in Adaptive IMLE, or pixels, as in RS-IMLE."""
    normalize: bool = False
    """Whether search features are scaled to length 1, which makes the rejection radius scale-free. True in RS-IMLE."""

    @property
    def label(self) -> str:
        """The name of the distance in titles and messages."""
        name = {"lpips": "LPIPS"}.get(self.kind, self.kind)
        return f"{name} with random weights" if self.kind == "lpips" and self.weights == "random" else name

    @property
    def least_resolution(self) -> int:
        """The lowest resolution in pixels that the network of LPIPS can take; 0 for other distances."""
        return {"vgg": 16, "alex": 32, "squeeze": 32}[self.backbone] if self.kind == "lpips" else 0


class SelectionConfig(ChoosingSection):
    """[selection]: which samples the data points are matched with, and when."""

    choices = (STRATEGIES,)

    strategy: str = "vanilla"
    """Selection strategy: "vanilla", "adaptive", "rejection", "adaptive-rejection", or another one by name."""
    pool: int | str = "10n"
    """Samples drawn to give every data point a new neighbour: a number, or a multiple of n such as "10n". One pool, or
    several smaller ones where the strategy's `share` is below 1. RS-IMLE's code has "10n"."""
    noise: float = Field(0.001, ge=0, le=LARGE)
    """Standard deviation of the normal noise added to selected latent codes. From the authors' code."""

    @field_validator("pool", mode="before")
    @classmethod
    def _check_pool(cls, pool: Any) -> Any:
        if not re.fullmatch(r"[1-9]\d{0,8}( ?n)?", pool if isinstance(pool, str) else shown(pool), re.ASCII):
            raise ValueError(f'{shown(pool)} is neither a number of samples nor a multiple of n such as "10n"')
        return pool

    def pool_size(self, n: int) -> int:
        """Return m, the number of samples in a pool, for n data points. Raises InputError as `whole_pool` does."""
        settings, whole = STRATEGIES.parameters(self.strategy)(**self.parameters), self.whole_pool(n)
        return settings.pool_size(whole) if isinstance(settings, Parameters) else whole

    def whole_pool(self, n: int) -> int:
        """Return how many samples `pool` means with n data points. Raises InputError if they are fewer than n."""
        text = str(self.pool)
        size = int(text.rstrip(" n")) * (n if text.endswith("n") else 1)
        if size < n:
            raise InputError(f"selection.pool is {size}, fewer than the {n} data points: make it at least that.")
        return size


class TrainConfig(SectionConfig):
    """[train]: AdamW, and how long it runs. "The papers'" values are those that Adaptive IMLE and RS-IMLE share."""

    iterations: int = Field(200_000, ge=1, le=MANY)
    """Training steps in all. The papers train for up to 200,000."""
    batch_size: int = Field(4, ge=1, le=MANY)
    """Data points per training step. The papers' value."""
    learning_rate: float = Field(2e-4, gt=0, le=LARGE)
    """Learning rate of AdamW after warm-up. From RS-IMLE's code; Adaptive IMLE's scripts have 5e-5 or 1e-4."""
    betas: tuple[Beta, Beta] = Field((0.9, 0.9), strict=False)
    """Decay rates of AdamW's averages of the gradient and of its square. From the authors' code."""
    weight_decay: float = Field(0.01, ge=0, le=LARGE)
    """Weight decay of AdamW. From the authors' code."""
    warmup: int = Field(10, ge=0, le=MANY)
    """Steps over which the learning rate rises from zero. From RS-IMLE's code; Adaptive IMLE's has 100."""
    ema: float = Field(0.9999, ge=0, lt=1)
    """Decay rate, per step, of the exponential moving average (EMA) of the weights. From the authors' code."""
    calibrate: bool = False
    """Whether to calibrate saved models: their samples get the contrast and mean colours of the data, and as much
    variety. For images only. Not in the papers."""
    patience: int = Field(0, ge=0, le=MANY)
    """Training stops after this many measurements (log.measure_every) without improvement; 0: it never stops early."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of matmuls and convolutions; "auto": bfloat16 where that is faster on the device."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to compile the training step, which takes minutes; "auto" does so on a GPU for 10,000 steps or more."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed of the whole run."""


class LogConfig(SectionConfig):
    """[log]: what is written, and how often. All defaults are this project's."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(("tensorboard",), strict=False)
    """Trackers that log the run besides log.jsonl: "tensorboard", "wandb" and "trackio" (the last two are extras)."""
    every: int = Field(100, ge=1, le=MANY)
    """Training steps from one line of the log to the next."""
    samples_every: int = Field(2000, ge=1, le=MANY)
    """Training steps from one sheet of samples to the next."""
    checkpoint_every: int = Field(2000, ge=1, le=MANY)
    """Training steps from one checkpoint to the next."""
    measure_every: int = Field(1000, ge=0, le=MANY)
    """Training steps from one measurement to the next of how far random samples are from the data and from held-out
    pictures; 0: never."""
    keep: int = Field(3, ge=1, le=MANY)
    """How many of the newest checkpoints are kept. The best one is kept too: that with the lowest FID, or where that is
    not measured, distance from held-out pictures to samples, distance from samples to the data, or loss."""
    fid_every: int = Field(0, ge=0, le=MANY)
    """Training steps from one measurement of the FID to the next, each with a checkpoint; 0: never."""
    fid_samples: int = Field(5000, ge=2, le=MAX_SAMPLES)
    """Samples per measurement of the FID. The papers have 5,000."""
