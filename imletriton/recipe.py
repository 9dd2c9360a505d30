"""The recipe: its TOML file, overrides, and checks that its sections agree. Its keys are in imletriton/sections.py."""

import contextlib
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from imletriton.data import BUILT_IN
from imletriton.errors import InputError
from imletriton.generator.blocks import MAX_PATCH, MAX_RESOLUTION, auto_blocks
from imletriton.runs.opening import Source
from imletriton.sections import (
    DataConfig,
    DistanceConfig,
    GeneratorConfig,
    LogConfig,
    SectionConfig,
    SelectionConfig,
    TrainConfig,
)
from imletriton.system.registry import Registry, explain, one_sentence, shown

CHOICES = (*SelectionConfig.choices, *GeneratorConfig.choices)
MAX_BYTES = 2**16  # of a recipe's file: a hundred times as many as a real one has
RECIPES = Path(__file__).parent / "recipes"  # those that come with the package
DEPTH, MAX_DEPTH = 4, 64  # generator.depth, by default (the papers') and at most
MENDS = {"data.source is missing": "name a folder of pictures by `data.source=FOLDER`"}


class Recipe(SectionConfig):
    """A recipe; the folder recipes/ has examples."""

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

        def known(section: Any, key: str, default: int, least: int, most: int) -> int:
            """The value of a key; its default where it is not a valid one, which validation will report."""
            value = section.get(key, default) if isinstance(section, dict) else default
            return value if type(value) is int and least <= value <= most else default

        data, generator = ((values.get(key) if isinstance(values, dict) else None) for key in ("data", "generator"))
        if not isinstance(generator, dict) or generator.get("decoder", "vdvae") != "vdvae":
            return values
        if generator.get("blocks") != "auto":
            if "depth" in generator:
                raise ValueError('generator.depth is for generator.blocks = "auto": leave it out')
            return values
        others = {key: value for key, value in generator.items() if key != "depth"}
        depth = generator.get("depth", DEPTH)
        if type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"generator.depth = {shown(depth)}: it must be a whole number from 1 to {MAX_DEPTH}")
        resolution = known(data, "resolution", DataConfig.model_fields["resolution"].default, 4, MAX_RESOLUTION)
        try:
            blocks = auto_blocks(resolution, depth, known(generator, "patch", 1, 1, MAX_PATCH))
        except ValueError as error:
            raise ValueError(f'generator.blocks = "auto": data.resolution of {error}') from error
        return values | {"generator": others | {"blocks": blocks}}

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        """Check that the sections agree."""
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
            path: The TOML file, or the name of a recipe that comes with imletriton, such as "dog" or "adaptive/dog".
            overrides: Values that replace those of the file, such as {"train.batch_size": 8}. If they choose another
                strategy, mapping or decoder, the file's parameters for the previous one are dropped.

        Raises:
            InputError: The file cannot be read, or a key or value is wrong. The message names the file and the keys.
        """
        try:
            named = Path(path)
            if not (named.exists() or named.is_absolute()):
                named = packaged_recipe(named.as_posix())
            with named.open("rb") as file:
                content = file.read(MAX_BYTES + 1)  # some files, such as /dev/zero, have no end
            if len(content) > MAX_BYTES:
                raise InputError(f"{path} is not a recipe: it has more than {MAX_BYTES} bytes.")
            values = tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        except RecursionError as error:
            raise InputError(f"{path} is not a recipe: its values are nested too deeply.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from error
        except ValueError as error:  # Python's, about a whole number of more than 4,300 digits
            raise InputError(f"{path} is not a recipe: a number in it has thousands of digits.") from error
        return cls.of(values, str(path), overrides)

    @classmethod
    def of(cls, values: dict[str, Any], title: str, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Check the values of a recipe by section and key, which messages call `title`; otherwise as `load`."""
        _apply(overrides or {}, values)
        try:
            return cls.model_validate(values)
        except InputError as error:
            raise InputError(f"{title}: {error}") from None
        except ValidationError as error:
            faults = [": ".join(filter(None, [fault, MENDS.get(fault)])) for fault in explain(error, known=_known_keys)]
            raise InputError(f"{title}: {one_sentence(faults)}") from None

    def to_toml(self) -> str:
        """Return the recipe as TOML, with all defaults filled in."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def with_source(self, source: str) -> "Recipe":
        """Return the recipe with another data.source."""
        return self.model_copy(update={"data": self.data.model_copy(update={"source": source})})

    def with_iterations(self, steps: int) -> "Recipe":
        """Return the recipe with another train.iterations."""
        return self.model_copy(update={"train": self.train.model_copy(update={"iterations": steps})})

    def anchored(self) -> "Recipe":
        """Return the recipe with an absolute path in data.source, which means the same in every working directory."""
        source = self.data.source
        return self if source in BUILT_IN else self.with_source(str(Path(source).expanduser().absolute()))

    def for_others(self) -> "Recipe":
        """Return the recipe for publication: of an absolute path in data.source, only the last part."""
        return self.with_source(Path(self.data.source).name) if Path(self.data.source).is_absolute() else self

    def changed_keys(self, other: "Recipe") -> list[str]:
        """Return the keys, as section.key, in which two recipes differ."""
        a, b = _flatten(self.model_dump()), _flatten(other.model_dump())
        return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def packaged_recipes() -> dict[str, Path]:
    """The files of the recipes that come with imletriton, by name: first "dog" and the like, then "adaptive/dog"."""
    files = {file.relative_to(RECIPES).with_suffix("").as_posix(): file for file in RECIPES.rglob("*.toml")}
    return {name: files[name] for name in sorted(files, key=lambda name: (name.count("/"), name))}


def is_packaged(path: Path) -> bool:
    """Whether a path is the name of a recipe that comes with imletriton, and not of something that exists."""
    return path.as_posix() in packaged_recipes() and not path.exists()


def packaged_recipe(name: str) -> Path:
    """Return the file of a recipe that comes with imletriton; raises InputError, with similar names, if none does."""
    packaged = packaged_recipes()
    if name in packaged:
        return packaged[name]
    near = difflib.get_close_matches(name.removeprefix("recipes/").removesuffix(".toml"), packaged)
    hint = f"did you mean {' or '.join(near)}?" if near else "`imletriton recipes` lists them."
    raise InputError(f"{name} is neither a file nor the name of a recipe that comes with imletriton: {hint}")


def _apply(overrides: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Write overrides into the values of a recipe.

    If they choose another strategy, mapping or decoder, parameters that it does not have are dropped, unless they are
    overrides themselves.
    """
    changed = [registry for registry in CHOICES if registry.key in overrides]
    foreign = set().union(*(_chosen_keys(registry, values) for registry in changed))  # of the previous choices
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
    """The keys, as section.key, of the parameters of what a recipe's values choose; none if that is unknown."""
    section = values.get(registry.section, {})
    if not isinstance(section, dict):
        return set()
    config: Any = Recipe.model_fields[registry.section].annotation
    with contextlib.suppress(InputError):  # validation will report it
        model = registry.parameters(str(section.get(registry.field, config.model_fields[registry.field].default)))
        return {f"{registry.section}.{key}" for key in model.model_fields}
    return set()


def parse_override(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into key and value, which is read as TOML if possible, and otherwise as a string.

    Raises InputError if there is no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} changes no key of the recipe: write section.key=value, such as train.batch_size=8.")
    with contextlib.suppress(ValueError, RecursionError):  # validation will report what TOML cannot read
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
    """The recipe of a model's run, or None if it has no run."""
    return Recipe.load(source.run.recipe_file) if source.has_recipe else None
