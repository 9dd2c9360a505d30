"""Strategies, mappings and decoders are found by name: built in, dropped into the package's folder, or installed."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import forget_foreign_classes

from imletriton.commands.fit import fit
from imletriton.errors import InputError
from imletriton.generator import DECODERS, MAPPINGS, Generator, Parameters
from imletriton.recipe import CHOICES, Recipe
from imletriton.selection import STRATEGIES, Vanilla
from imletriton.system.registry import Registry

Install = Callable[..., None]

STRATEGY = """
from imletriton.selection import Parameters, Vanilla

class Theirs(Vanilla):
    name = "their-choice"
    class Parameters(Vanilla.Parameters):
        strength: int = 3
"""
MAPPING = """
import torch
from imletriton.generator import Mapping, Parameters
from pydantic import Field

class Theirs(Mapping):
    name = "their-choice"
    class Parameters(Parameters):
        strength: int = Field(3, ge=1)

    def __init__(self, latent_dim, settings):
        super().__init__(latent_dim, settings)
        self.style_dim = latent_dim + settings.strength
        self.linear = torch.nn.Linear(latent_dim, self.style_dim)

    def forward(self, z):
        return self.linear(z).tanh()
"""
DECODER = """
import torch
from imletriton.generator import Decoder, DecoderParameters

class Theirs(Decoder):
    name = "their-choice"
    width = 12
    class Parameters(DecoderParameters):
        strength: int = 3
        side: int = 16
        def shape(self):
            return (3, self.side, self.side) if self.side else (2,)

    def __init__(self, style_dim, settings):
        super().__init__(style_dim, settings)
        self.linear = torch.nn.Linear(style_dim, torch.Size(self.shape).numel())

    def forward(self, w):
        return self.linear(w).tanh().float().unflatten(1, self.shape)

"""
KINDS = {STRATEGIES: ("strategies", STRATEGY), MAPPINGS: ("mappings", MAPPING), DECODERS: ("decoders", DECODER)}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_foreign_classes()


def keys(registry: Registry) -> dict[str, object]:
    """Overrides that choose "their-choice" with a parameter."""
    return {registry.key: "their-choice", f"{registry.section}.strength": 5}


@pytest.mark.parametrize("registry", CHOICES, ids=lambda r: r.field)
def test_built_in_classes_are_found_with_the_parameters_that_are_listed(registry: Registry) -> None:
    for name, parameters in registry.built_in.items():
        assert registry.find(name).Parameters is parameters is registry.parameters(name)
        assert registry.find(name).name == name


@pytest.mark.parametrize(
    ("registry", "name", "words"),
    [
        (STRATEGIES, "rejecton", "selection.strategy 'rejecton' is not known: did you mean 'rejection'?"),
        (MAPPINGS, "nine", "generator.mapping 'nine' is not known: did you mean 'none'?"),
        (DECODERS, "vdvea", "generator.decoder 'vdvea' is not known: did you mean 'vdvae'?"),
        (DECODERS, "zzz", "generator.decoder 'zzz' is not known: choose one of mlp, vdvae."),
        (DECODERS, "base", "generator.decoder 'base' is not known"),
        (STRATEGIES, "misalignment", "selection.strategy 'misalignment' is not known"),
        (STRATEGIES, "../vanilla", "selection.strategy '../vanilla' is not known"),
        (STRATEGIES, "adaptive_rejection", "did you mean 'adaptive-rejection'?"),
        (MAPPINGS, "", "generator.mapping '' is not known"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(registry: Registry, name: str, words: str) -> None:
    for search in (registry.find, registry.parameters):
        with pytest.raises(InputError) as caught:
            search(name)
        assert words in str(caught.value)


def test_defining_a_class_makes_its_name_known_and_inheriting_a_name_does_not() -> None:
    class Lazy(Vanilla):
        name = "lazy"

    class Nameless(Lazy):
        pass

    assert STRATEGIES.find("lazy") is Lazy
    with pytest.raises(InputError, match="did you mean 'lazy'"):
        STRATEGIES.find("lasy")


@pytest.mark.parametrize("registry", CHOICES, ids=lambda r: r.field)
def test_a_new_file_in_the_packages_folder_is_found_by_its_name(
    registry: Registry, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_choice.py").write_text(KINDS[registry][1])
    package = import_module(registry.package)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    recipe = Recipe.load(recipe_file, keys(registry))
    assert registry.find("their-choice").__module__ == f"{registry.package}.their_choice"
    section = getattr(recipe, registry.section)
    assert (getattr(section, registry.field), section.strength) == ("their-choice", 5)
    del sys.modules[f"{registry.package}.their_choice"]


@pytest.mark.parametrize("registry", CHOICES, ids=lambda r: r.field)
def test_another_packages_class_trains_and_its_checkpoints_load(
    registry: Registry, install: Install, recipe_file: Path, tmp_path: Path
) -> None:
    group, code = KINDS[registry]
    install("their-package", code, **{group: {"their-choice": "their_package:Theirs"}})
    recipe = Recipe.load(recipe_file, keys(registry) | {"train.iterations": 8, "log.checkpoint_every": 8})
    run = fit(recipe, tmp_path / "run", "cpu")
    samples = Generator.from_pretrained(run.path).sample(3)
    assert samples.shape == (3, 3, 16, 16)
    del registry.classes["their-choice"], sys.modules["their_package"]  # as in another process
    assert Recipe.load(run.recipe_file) == recipe
    assert torch.equal(Generator.from_pretrained(run.path).sample(3), samples)
    resumed = Recipe.load(recipe_file, keys(registry) | {"train.iterations": 9, "log.checkpoint_every": 8})
    assert fit(resumed, run.path, "cpu", resume=True).checkpoints[-1].name == "000009"


def test_another_packages_decoder_may_make_points(install: Install, tmp_path: Path) -> None:
    install("their-package", DECODER, decoders={"their-choice": "their_package:Theirs"})
    overrides = keys(DECODERS) | {"generator.side": 0, "train.iterations": 3, "generator.latent_dim": 3}
    recipe = Recipe.load(Path(__file__).parents[2] / "recipes/toy2d.toml", overrides)
    assert not recipe.generator.makes_images
    run = fit(recipe, tmp_path / "run", "cpu")
    assert Generator.from_pretrained(run.path).sample(2).dtype == torch.float32


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("no_such_package:Theirs", "cannot be loaded from no_such_package:Theirs: No module named 'no_such_package'."),
        ("their_package:Ours", "cannot be loaded from their_package:Ours: "),
        ("their_package:name", "cannot be loaded from their_package:name: it defines no class with name = 'good'."),
    ],
)
@pytest.mark.parametrize("registry", CHOICES, ids=lambda r: r.field)
def test_a_package_that_cannot_be_loaded_is_named(
    registry: Registry, install: Install, recipe_file: Path, entry: str, words: str
) -> None:
    install("their-package", "name = 'good'\n", **{KINDS[registry][0]: {"good": entry}})
    with pytest.raises(InputError) as caught:
        Recipe.load(recipe_file, {registry.key: "good"})
    assert f"tiny.toml: {registry.key} 'good' {words}" in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'good'"):
        registry.find("goud")


@pytest.mark.parametrize("registry", CHOICES, ids=lambda r: r.field)
def test_keys_of_another_packages_class_are_checked_as_the_built_in_ones(
    registry: Registry, install: Install, recipe_file: Path
) -> None:
    group, code = KINDS[registry]
    install("their-package", code, **{group: {"their-choice": "their_package:Theirs"}})
    section = registry.section
    for override, words in [
        ({f"{section}.strenght": 1}, f"{section}.strenght is not a key; did you mean 'strength'?"),
        ({f"{section}.strength": "high"}, f"{section}.strength = 'high': input should be a valid integer"),
    ]:
        with pytest.raises(InputError) as caught:
            Recipe.load(recipe_file, keys(registry) | override)
        assert words in str(caught.value)
    recipe_file.write_text(Recipe.load(recipe_file, keys(registry)).to_toml())
    overrides = {registry.key: next(iter(registry.built_in))}
    overrides |= {"generator.blocks": "4x1,16m4"} if registry is DECODERS else {}
    forget_foreign_classes()
    sys.modules.pop("their_package")  # as in another process
    back = Recipe.load(recipe_file, overrides)
    assert "strength" not in getattr(back, section).model_dump()


@pytest.mark.parametrize(
    "parameters", ["", "class Parameters(DecoderParameters): pass", "class Parameters(Parameters): pass"]
)
def test_a_decoder_that_does_not_tell_its_samples_shape_is_refused(
    parameters: str, install: Install, recipe_file: Path
) -> None:
    imported = "from imletriton.generator import Decoder, DecoderParameters, Parameters\n\n"
    code = f"{imported}class Theirs(Decoder):\n    name = 'shapeless'\n    {parameters}\n"
    install("their-package", code, decoders={"shapeless": "their_package:Theirs"})
    needs = r"from their_package:Theirs: Theirs.Parameters must be a subclass of DecoderParameters that defines shape"
    with pytest.raises(InputError, match=needs):
        Recipe.load(recipe_file, {"generator.decoder": "shapeless"})


def test_two_choices_with_a_parameter_of_one_name_are_told(recipe_file: Path, install: Install) -> None:
    install("their-mapping", MAPPING, mappings={"their-choice": "their_mapping:Theirs"})
    install("their-decoder", DECODER, decoders={"their-choice": "their_decoder:Theirs"})
    chosen = {"generator.mapping": "their-choice", "generator.decoder": "their-choice"}
    both = "generator.strength is a key of both mapping 'their-choice' and decoder 'their-choice': one of them"
    with pytest.raises(InputError, match=both):
        Recipe.load(recipe_file, chosen)
    with pytest.raises(InputError, match=both):
        Generator(8, "their-choice", "their-choice")


def test_a_parameter_that_the_section_has_already_is_told(recipe_file: Path) -> None:
    class Grabbing(Vanilla):
        name = "grabbing"

        class Parameters(Parameters):
            pool: int = 3

    with pytest.raises(InputError, match=r"selection.pool is a key of both section \[selection\] and strategy 'grab"):
        Recipe.load(recipe_file, {"selection.strategy": "grabbing"})


def test_samples_of_another_shape_than_the_data_are_told(recipe_file: Path, install: Install) -> None:
    install("their-package", DECODER, decoders={"their-choice": "their_package:Theirs"})
    with pytest.raises(InputError) as caught:
        Recipe.load(recipe_file, keys(DECODERS) | {"generator.side": 8})
    shapes = "samples of shape (3, 8, 8), the data points have shape (3, 16, 16): make them agree."
    assert f"generator.decoder 'their-choice' makes {shapes}" in str(caught.value)
    with pytest.raises(InputError, match=r"images need generator.decoder 'vdvae' \(or another one that makes images\)"):
        Recipe.load(recipe_file, keys(DECODERS) | {"generator.side": 0})
