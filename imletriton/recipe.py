"""The recipe: a TOML file as frozen, validated models. The docstring below a key is its description.

The keys of strategies are in imletriton/selection/parameters.py, those of mappings and decoders in
imletriton/generator/parameters.py.
"""

import contextlib
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from imletriton.data import BUILT_IN
from imletriton.errors import InputError
from imletriton.generator.blocks import MAX_PATCH, MAX_RESOLUTION, auto_blocks
from imletriton.generator.parameters import (
    DECODERS,
    MAPPINGS,
    MAX_LATENT_DIM,
    Cost,
    DecoderParameters,
    generator_cost,
    read_parameters,
)
from imletriton.runs.opening import Source
from imletriton.selection.parameters import STRATEGIES, Parameters
from imletriton.system.registry import LARGE, MANY, Registry, explain, one_sentence, read_settings, shown

# Each of these is chosen by a key of the recipe, and what is chosen adds keys of its own to the same section.
CHOICES = (STRATEGIES, MAPPINGS, DECODERS)
MAX_BYTES = 2**16  # of a recipe's file: a hundred times as many as a real one has
MAX_SAMPLES = 10**6  # to write or to measure in one go
RECIPES = Path(__file__).parent / "recipes"  # those that come with the package
# Of generator.blocks = "auto", where generator.depth does not say another number. The papers'.
DEPTH, MAX_DEPTH = 4, 64
MENDS = {"data.source is missing": "name a folder of pictures by `data.source=FOLDER`"}


class SectionConfig(BaseModel):
    """A section of the recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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


class GeneratorConfig(SectionConfig):
    """[generator]: its other keys are the parameters of the mapping and of the decoder."""

    model_config = ConfigDict(extra="allow")

    latent_dim: int = Field(1024, ge=1, le=MAX_LATENT_DIM)
    """Dimension of a latent code. The papers' value."""
    mapping: str = "mlp"
    """Mapping network: "mlp" (StyleGAN's, as in the papers), "none", or another one by name."""
    decoder: str = "vdvae"
    """Decoder: "vdvae" (the papers') for images, "mlp" for points in the plane, or another one by name."""

    @model_validator(mode="before")
    @classmethod
    def _read_parameters(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields, others = _split(values, cls)
        mapping, decoder = (str(fields.get(key, cls.model_fields[key].default)) for key in ("mapping", "decoder"))
        of_mapping, of_decoder = read_parameters(mapping, decoder, others)
        return fields | of_mapping.model_dump() | of_decoder.model_dump()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, height, width) for images, (2,) for points in the plane."""
        return self._parameters[1].shape()

    @property
    def _parameters(self) -> tuple[BaseModel, DecoderParameters]:
        """The parameters of the mapping and of the decoder."""
        return read_parameters(self.mapping, self.decoder, self.model_extra or {})

    def cost(self, bfloat16: bool) -> Cost:
        """What the generator takes of memory, where it multiplies in bfloat16 or does not; see `Cost`."""
        return generator_cost(self.latent_dim, *self._parameters, bfloat16)

    @property
    def makes_images(self) -> bool:
        """Whether the samples are images, rather than points in the plane."""
        return len(self.shape) == 3


class DistanceConfig(SectionConfig):
    """[distance]: what training makes smaller, and what nearest neighbours are searched by."""

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
        """What the distance is called in titles and messages."""
        name = {"lpips": "LPIPS"}.get(self.kind, self.kind)
        return f"{name} with random weights" if self.kind == "lpips" and self.weights == "random" else name

    @property
    def least_resolution(self) -> int:
        """The resolution in pixels below which the network of LPIPS has nothing left to see; 0 for other distances."""
        return {"vgg": 16, "alex": 32, "squeeze": 32}[self.backbone] if self.kind == "lpips" else 0


class SelectionConfig(SectionConfig):
    """[selection]: its other keys are the parameters of the strategy."""

    model_config = ConfigDict(extra="allow")

    strategy: str = "vanilla"
    """Selection strategy: "vanilla", "adaptive", "rejection", "adaptive-rejection", or another one by name."""
    pool: int | str = "10n"
    """Samples drawn to give every data point a new neighbour: a number, or a multiple of n such as "10n". One pool, or
    several smaller ones where the strategy's `share` is below 1. RS-IMLE's code has "10n"."""
    noise: float = Field(0.001, ge=0, le=LARGE)
    """Standard deviation of the normal noise added to selected latent codes. From the authors' code."""

    @model_validator(mode="before")
    @classmethod
    def _read_parameters(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields, others = _split(values, cls)
        strategy = str(fields.get("strategy", cls.model_fields["strategy"].default))
        [settings] = read_settings({STRATEGIES: strategy}, others, cls.model_fields)
        return fields | settings.model_dump()

    @field_validator("pool", mode="before")
    @classmethod
    def _check_pool(cls, pool: Any) -> Any:
        if not re.fullmatch(r"[1-9]\d{0,8}( ?n)?", pool if isinstance(pool, str) else shown(pool), re.ASCII):
            raise ValueError(f'{shown(pool)} is neither a number of samples nor a multiple of n such as "10n"')
        return pool

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the strategy."""
        return dict(self.model_extra or {})

    def pool_size(self, n: int) -> int:
        """Return the number of samples in a pool, m, for n data points. Raises InputError as `whole_pool` does."""
        settings, whole = STRATEGIES.parameters(self.strategy)(**self.parameters), self.whole_pool(n)
        return settings.pool_size(whole) if isinstance(settings, Parameters) else whole

    def whole_pool(self, n: int) -> int:
        """Return how many samples `pool` asks for with n data points. Raises InputError if these are less than n."""
        text = str(self.pool)
        size = int(text.rstrip(" n")) * (n if text.endswith("n") else 1)
        if size < n:
            raise InputError(f"selection.pool is {size}, fewer than the {n} data points: make it at least that.")
        return size


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(SectionConfig):
    """[train]: AdamW, and how long it runs. "The papers'" stands for what Adaptive IMLE and RS-IMLE share."""

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
    """[log]: how often what is written. All defaults are this project's."""

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


class Recipe(SectionConfig):
    """A whole recipe; the folder recipes/ has examples."""

    name: str = Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the recipe; its runs are runs/NAME-001, runs/NAME-002, ..."""
    data: DataConfig
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    distance: DistanceConfig = DistanceConfig()
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _lay_out_blocks(cls, values: Any) -> Any:
        """Replace generator.blocks = "auto" and generator.depth by the blocks that follow from data.resolution."""
        data, generator = ((values.get(key) if isinstance(values, dict) else None) for key in ("data", "generator"))
        if not isinstance(generator, dict) or generator.get("decoder", "vdvae") != "vdvae":
            return values
        others = {key: value for key, value in generator.items() if key != "depth"}
        if generator.get("blocks") != "auto":
            if "depth" in generator:
                raise ValueError('generator.depth is for generator.blocks = "auto": leave it out')
            return values
        depth = generator.get("depth", DEPTH)
        if type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"generator.depth = {shown(depth)}: it must be a whole number from 1 to {MAX_DEPTH}")
        default = cls.model_fields["data"].annotation.model_fields["resolution"].default  # type: ignore[union-attr]
        resolution = data.get("resolution", default) if isinstance(data, dict) else default
        if type(resolution) is not int or not 4 <= resolution <= MAX_RESOLUTION:
            resolution = default  # which validation will refuse
        patch = generator.get("patch", 1)
        if type(patch) is not int or not 1 <= patch <= MAX_PATCH:
            patch = 1  # validation will refuse it
        try:
            blocks = auto_blocks(resolution, depth, patch)
        except ValueError as error:
            raise ValueError(f'generator.blocks = "auto": data.resolution of {error}') from error
        return values | {"generator": others | {"blocks": blocks}}

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        """Check that the sections fit together; each message names the keys that do not."""
        images, samples, distance = len(self.data.shape) == 3, self.generator.shape, self.distance
        fitting = self.generator.makes_images == images and (distance.kind != "euclidean") == images
        if not images:
            points = f"data.source {self.data.source!r}"
            if not fitting:
                decoders = "generator.decoder 'mlp' (or another one that makes points)"
                raise ValueError(f"{points} needs {decoders} and distance.kind 'euclidean'")
            if self.log.fid_every:
                raise ValueError(f"log.fid_every is for pictures, not for {points}")
            if self.train.calibrate:
                raise ValueError(f"train.calibrate is for pictures, not for {points}")
        elif not fitting:
            decoders = "generator.decoder 'vdvae' (or another one that makes images)"
            raise ValueError(f"images need {decoders} and distance.kind 'lpips', 'pixels' or 'bands'")
        if samples != self.data.shape:
            decoder, resolution = f"generator.decoder {self.generator.decoder!r}", self.data.resolution
            if self.generator.decoder == "vdvae":
                patch = self.generator.model_dump()["patch"]
                squares = f", in patches of generator.patch = {patch}" if patch > 1 else ""
                ends = f"generator.blocks end at resolution {samples[-1]}{squares}"
                raise ValueError(f"{ends}, data.resolution is {resolution}: make them agree")
            shapes = f"samples of shape {samples}, the data points have shape {self.data.shape}"
            raise ValueError(f"{decoder} makes {shapes}: make them agree")
        if self.train.patience and not self.log.measure_every:
            raise ValueError("train.patience counts measurements: set log.measure_every, such as to 1000")
        if self.data.resolution < distance.least_resolution:
            needs = f"needs data.resolution of {distance.least_resolution} or more"
            raise ValueError(f"distance.backbone {distance.backbone!r} {needs}")
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Read and check a recipe.

        Args:
            path: The TOML file; where there is none, the name of a recipe that comes with imletriton, such as "dog" or
                "adaptive/dog".
            overrides: Values that replace those of the file, by section and key, such as {"train.batch_size": 8}.
                Where they change a strategy, mapping or decoder, parameters of others are left out of the file.

        Returns:
            The recipe, with all defaults filled in.

        Raises:
            InputError: The file cannot be read, or a key or value is wrong. The message is one sentence that names the
                file and the keys.
        """
        try:
            named = Path(path)
            if not (named.exists() or named.is_absolute()):
                named = packaged_recipe(named.as_posix())
            with named.open("rb") as file:
                content = file.read(MAX_BYTES + 1)  # some files, such as /dev/zero, have no end
            if len(content) > MAX_BYTES:
                raise InputError(f"{path} is no recipe: it has more than {MAX_BYTES} bytes.")
            values = tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except RecursionError as error:
            raise InputError(f"{path} is no recipe: its values are nested too deeply.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from error
        except ValueError as error:  # Python's, about a whole number of more than 4,300 digits
            raise InputError(f"{path} is no recipe: a number in it has thousands of digits.") from error
        return cls.of(values, str(path), overrides)

    @classmethod
    def of(cls, values: dict[str, Any], title: str, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Check the values of a recipe, which are changed by the overrides; see `load`.

        Args:
            values: The values by section and key.
            title: What messages call the recipe.
            overrides: Values that replace those, by section and key.

        Raises:
            InputError: A key or value is wrong.
        """
        _apply(overrides or {}, values)
        try:
            return cls.model_validate(values)
        except InputError as error:
            raise InputError(f"{title}: {error}") from None
        except ValidationError as error:
            faults = [": ".join(filter(None, [fault, MENDS.get(fault)])) for fault in explain(error, known=_known_keys)]
            raise InputError(f"{title}: {one_sentence(faults)}") from None

    def to_toml(self) -> str:
        """Return the recipe as TOML, with every default filled in."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def with_source(self, source: str) -> "Recipe":
        """Return the recipe with another data.source."""
        return self.model_copy(update={"data": self.data.model_copy(update={"source": source})})

    def with_iterations(self, steps: int) -> "Recipe":
        """Return the recipe with another train.iterations."""
        return self.model_copy(update={"train": self.train.model_copy(update={"iterations": steps})})

    def anchored(self) -> "Recipe":
        """Return the recipe with a folder in data.source as an absolute path, so that it means the same everywhere."""
        source = self.data.source
        return self if source in BUILT_IN else self.with_source(str(Path(source).expanduser().absolute()))

    def for_others(self) -> "Recipe":
        """Return the recipe with a folder in data.source by its last part alone: others need not know where it lies."""
        return self.with_source(Path(self.data.source).name) if Path(self.data.source).is_absolute() else self

    def changed_keys(self, other: "Recipe") -> list[str]:
        """Return the keys, as section.key, in which two recipes differ."""
        a, b = _flatten(self.model_dump()), _flatten(other.model_dump())
        return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with imletriton: their files by their names, such as "dog", and then "adaptive/dog"."""
    files = {file.relative_to(RECIPES).with_suffix("").as_posix(): file for file in RECIPES.rglob("*.toml")}
    return {name: files[name] for name in sorted(files, key=lambda name: (name.count("/"), name))}


def is_packaged(path: Path) -> bool:
    """Whether a path, at which nothing lies, is the name of a recipe that comes with imletriton."""
    return path.as_posix() in packaged_recipes() and not path.exists()


def packaged_recipe(name: str) -> Path:
    """Return the file of a recipe that comes with imletriton.

    Raises:
        InputError: None has this name. The message lists similar names.
    """
    packaged = packaged_recipes()
    if name in packaged:
        return packaged[name]
    near = difflib.get_close_matches(name.removeprefix("recipes/").removesuffix(".toml"), packaged)
    hint = f"did you mean {' or '.join(near)}?" if near else "`imletriton recipes` lists them."
    raise InputError(f"{name} is neither a file nor the name of a recipe that comes with imletriton: {hint}")


def _split(values: dict[str, Any], section: type[SectionConfig]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the values of a section into those of its fields and the others."""
    fields = {key: value for key, value in values.items() if key in section.model_fields}
    return fields, {key: value for key, value in values.items() if key not in fields}


def _apply(overrides: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Write overrides into the values of a recipe.

    Where they change a strategy, mapping or decoder, parameters that only others have are dropped, unless they are
    overrides themselves.
    """
    changed = [registry for registry in CHOICES if registry.key in overrides]
    foreign = set().union(*(_chosen_keys(registry, values) for registry in changed))  # of the choices before
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise InputError(f"{key}: {section!r} is not a section of the recipe.")
        target[last] = value
    for registry in changed:
        for model in registry.known_parameters().values():
            foreign |= {f"{registry.section}.{key}" for key in model.model_fields}
    if overrides.get("generator.blocks", "auto") != "auto" or "generator.decoder" in overrides:
        foreign.add("generator.depth")  # which belongs to blocks = "auto"
    chosen = set().union(*(_chosen_keys(registry, values) for registry in CHOICES))
    for key in foreign - chosen - overrides.keys():
        section, _, last = key.partition(".")
        values.get(section, {}).pop(last, None)


def _chosen_keys(registry: Registry, values: dict[str, Any]) -> set[str]:
    """The keys, as section.key, of the parameters of what a recipe's values choose; none if it is not known."""
    section = values.get(registry.section, {})
    if not isinstance(section, dict):
        return set()
    config: Any = Recipe.model_fields[registry.section].annotation
    with contextlib.suppress(InputError):  # validation will report it
        model = registry.parameters(str(section.get(registry.field, config.model_fields[registry.field].default)))
        return {f"{registry.section}.{key}" for key in model.model_fields}
    return set()


def parse_override(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into the key and its value.

    The value is read as TOML if possible, and otherwise taken as a string. Raises InputError if there is no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} changes no key of the recipe: write section.key=value, such as train.batch_size=8.")
    with contextlib.suppress(ValueError, RecursionError):  # what TOML cannot read, validation will name
        parsed = tomllib.loads(f"x = {value}")["x"]
        if isinstance(parsed, str | int | float | list):  # a folder may look like a date
            return key.strip(), parsed
    return key.strip(), value.strip()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _known_keys(path: Iterable[str]) -> list[str]:
    """The keys of the section at a path of the recipe."""
    model: Any = Recipe
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def recipe_of(source: Source) -> Recipe | None:
    """The recipe of the run that a model belongs to; None where it belongs to none."""
    return Recipe.load(source.run.recipe_file) if source.has_recipe else None
