"""The recipe: a TOML file as frozen, validated models. Every key and its default stands here."""

import contextlib
import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from imletriton.errors import InputError
from imletriton.generator.blocks import parse_blocks
from imletriton.selection.register import find_parameters, known_parameters


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    source: str  # a folder of images, or a built-in set: faces, toy2d
    resolution: int = Field(256, ge=4)  # pixels a side; points have none
    mirror: bool = False  # fit each picture's mirror image too: n doubles
    holdout: float = Field(0.0, ge=0, lt=1)  # share of the data points kept from training, for LPIPS backtracking


class Generator(Section):
    latent_dim: int = Field(1024, ge=1)
    mapping: Literal["mlp", "none"] = "mlp"
    mapping_layers: int = Field(8, ge=1)
    decoder: Literal["vdvae", "mlp"] = "vdvae"  # images; or points in the plane
    width: int = Field(384, ge=1)  # channels at every resolution
    blocks: str = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16,32x2,64m32,64x2,128m64,128x2,256m128"
    bottleneck: float = Field(0.25, gt=0, le=1)  # a block's middle width as a share of width


class Distance(Section):
    kind: Literal["lpips", "pixels", "euclidean"] = "lpips"
    backbone: Literal["vgg", "alex", "squeeze"] = "vgg"  # of lpips
    weights: Literal["pretrained", "random"] = "pretrained"  # of the networks
    pixel_weight: float = Field(0.1, ge=0)  # lpips + pixel_weight * mean squared pixel difference
    projection_dim: int = Field(800, ge=1)  # dimensions of the search space
    search: Literal["features", "pixels"] = (
        "features"  # what nearest neighbours are searched by: as kind, or the pixels
    )
    normalize: bool = False  # search features to length 1: a rejection radius then has no scale


class Selection(Section):
    """Besides these, the parameters of the strategy; they stand in imletriton/selection/parameters.py."""

    model_config = ConfigDict(extra="allow")

    strategy: str = "vanilla"
    pool: int | str = "10n"  # samples in the pool: a number, or a multiple of n such as "10n"
    noise: float = Field(0.001, ge=0)  # standard deviation of the noise added to selected latents

    @model_validator(mode="before")
    @classmethod
    def _fill_in_strategy(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        own = {k: v for k, v in data.items() if k in cls.model_fields}
        parameters = find_parameters(str(own.get("strategy", "vanilla")))
        rest = {k: v for k, v in data.items() if k not in own}
        try:
            return own | parameters.model_validate(rest).model_dump()
        except ValidationError as error:
            known = [*cls.model_fields, *parameters.model_fields]
            raise InputError(_explain(error, "selection", known)) from None

    @field_validator("pool", mode="before")
    @classmethod
    def _check_pool(cls, pool: Any) -> Any:
        if not re.fullmatch(r"[1-9]\d*( ?n)?", str(pool), re.ASCII):
            raise ValueError(f'{pool!r} is neither a number of samples nor a multiple of n such as "10n"')
        return pool

    @property
    def parameters(self) -> dict[str, Any]:
        """The strategy's own parameters."""
        return dict(self.model_extra or {})

    def pool_size(self, n: int) -> int:
        """The pool's size m for n data points. Raises InputError where m is less than n."""
        text = str(self.pool)
        size = int(text.rstrip(" n")) * (n if text.endswith("n") else 1)
        if size < n:
            raise InputError(f"selection.pool is {size}, fewer than the {n} data points: make it at least that.")
        return size


Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    iterations: int = Field(200_000, ge=1)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.9), strict=False)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(10, ge=0)  # steps of rising learning rate
    ema: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the device multiplies it fast
    compile: bool | Literal["auto"] = "auto"  # takes minutes first; auto: on a GPU, for 10,000 steps or more
    seed: int = Field(0, ge=0, lt=2**32)


class Log(Section):
    every: int = Field(100, ge=1)  # steps between lines of the log
    samples_every: int = Field(2000, ge=1)  # ... grids of samples
    checkpoint_every: int = Field(2000, ge=1)  # ... checkpoints
    keep: int = Field(3, ge=1)  # newest checkpoints kept, besides the best: of least FID, else of least loss
    fid_every: int = Field(0, ge=0)  # steps between measurements of the FID, each with a checkpoint; 0: none
    fid_samples: int = Field(5000, ge=2)  # ... of so many samples, by Inception with `distance.weights`


class Recipe(Section):
    """A whole recipe; see recipes/ for examples."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: Data
    generator: Generator = Generator()
    distance: Distance = Distance()
    selection: Selection = Field(default_factory=Selection)
    train: Train = Train()
    log: Log = Log()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Sections must fit together; each message names the keys."""
        if self.data.source == "toy2d":
            if (self.generator.decoder, self.distance.kind) != ("mlp", "euclidean"):
                raise ValueError("data.source 'toy2d' needs generator.decoder 'mlp' and distance.kind 'euclidean'")
            if self.log.fid_every:
                raise ValueError("log.fid_every is for pictures, not for data.source 'toy2d'")
            return self
        if self.generator.decoder != "vdvae" or self.distance.kind == "euclidean":
            raise ValueError("images need generator.decoder 'vdvae' and distance.kind 'lpips' or 'pixels'")
        last = parse_blocks(self.generator.blocks)[-1].resolution
        if last != self.data.resolution:
            raise ValueError(
                f"generator.blocks end at resolution {last}, data.resolution is {self.data.resolution}: make them agree"
            )
        smallest = {"vgg": 16, "alex": 32, "squeeze": 32}[self.distance.backbone]
        if self.distance.kind == "lpips" and self.data.resolution < smallest:
            raise ValueError(
                f"distance.backbone '{self.distance.backbone}' needs data.resolution of {smallest} or more"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Read a recipe; overrides are {"section.key": value}.

        Raises InputError, one sentence that names the file or the keys, where it cannot be used.
        """
        try:
            values = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from error
        for key, value in (overrides or {}).items():
            *sections, last = key.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
                if not isinstance(place, dict):
                    raise InputError(f"{key}: {section!r} is not a section of the recipe.")
            place[last] = value
        if "selection.strategy" in (overrides or {}):
            _drop_other_strategys_keys(values["selection"], keep=overrides or {})
        try:
            return cls.model_validate(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except ValidationError as error:
            raise InputError(f"{path}: {_explain(error)}") from None

    def to_toml(self) -> str:
        """The recipe as TOML with every default filled in."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def changed_keys(self, other: "Recipe") -> list[str]:
        """The keys, as section.key, in which two recipes differ."""
        mine, theirs = _flatten(self.model_dump()), _flatten(other.model_dump())
        return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))


def _drop_other_strategys_keys(selection: dict[str, Any], keep: Mapping[str, Any]) -> None:
    """Forget parameters of the strategies that the recipe does not name, unless they are overrides themselves."""
    own = None
    with contextlib.suppress(InputError):  # an unknown one is told when the recipe is validated
        own = find_parameters(str(selection["strategy"]))
    known = {key for parameters in known_parameters().values() for key in parameters.model_fields}
    for key in known - set(own.model_fields if own else known):
        if f"selection.{key}" not in keep:
            selection.pop(key, None)


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value` as (key, value); the value is read as TOML where it can be, else as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} changes no key of the recipe: write section.key=value, such as train.batch_size=8.")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        read = tomllib.loads(f"x = {value}")["x"]
        if isinstance(read, str | int | float | list):  # a folder may look like a date
            return key.strip(), read
    return key.strip(), value.strip()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _explain(error: ValidationError, section: str = "", known: list[str] | None = None) -> str:
    """pydantic's findings as one sentence that names each key."""
    findings = []
    for finding in error.errors():
        place = [*([section] if section else []), *(str(p) for p in finding["loc"])]
        key = ".".join(place)
        if finding["type"] == "extra_forbidden":
            names = known or _known_keys(place[:-1])
            near = difflib.get_close_matches(place[-1], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
            findings.append(f"{key} is not a key; {hint}")
        elif finding["type"] == "missing":
            findings.append(f"{key} is missing")
        elif finding["type"] == "value_error":
            reason = str(finding["ctx"]["error"])
            findings.append(f"{key}: {reason}" if key else reason)
        else:
            value = finding["input"]
            message = finding["msg"][0].lower() + finding["msg"][1:]
            findings.append(f"{key} = {value!r}: {message}" if not isinstance(value, dict) else f"{key}: {message}")
    return "; ".join(findings).rstrip(".?") + ("?" if findings[-1].endswith("?") else ".")


def _known_keys(place: list[str]) -> list[str]:
    model: Any = Recipe
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
