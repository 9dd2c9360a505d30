from pathlib import Path

import pytest
import torch
from annotated_types import Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from imletriton.data.catalogue import KNOWN
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.recipe import CHOICES, Recipe, parse_override

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.toml"))}
MINIMAL = 'name = "x"\n[data]\nsource = "pictures"\n'

TOY = """
name = "toy"
[data]
source = "toy2d"
[generator]
latent_dim = 2
mapping = "none"
decoder = "mlp"
width = 64
[distance]
kind = "euclidean"
"""


def load(tmp_path: Path, text: str, **overrides: object) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Recipe.load(path, overrides)


# What the scripts of Adaptive IMLE's authors set: delta, pool, staleness, forced_refresh, learning rate.
SCRIPTS = {
    "grumpy_cat": (0.98, "100n", 5, 25, 1e-4),
    "obama": (0.99, "100n", 5, 15, 5e-5),
    "panda": (0.99, "200n", 5, 30, 1e-4),
    "cat": (0.99, "100n", 5, 25, 5e-5),
    "dog": (0.99, "100n", 5, 15, 1e-4),
    "ffhq100": (0.98, "100n", 5, 15, 1e-4),
}


PHOTOS = ("photos64", "photos128", "photos256")


def test_the_papers_sets_three_demos_and_three_for_own_pictures_come_with_the_project() -> None:
    assert set(RECIPES) == {*KNOWN, "faces", "faces64", "toy2d", *PHOTOS, *(f"adaptive/{name}" for name in SCRIPTS)}


@pytest.mark.parametrize("file", RECIPES)
def test_a_recipe_of_the_project_loads_and_is_named_after_its_file(file: str) -> None:
    """So runs of two recipes for one set lie in folders of their own."""
    own = {"data.source": "pictures"} if file in PHOTOS else {}
    assert Recipe.load(RECIPES[file], own).name == "-".join(reversed(file.split("/")))


@pytest.mark.parametrize("file", PHOTOS)
def test_a_recipe_for_own_pictures_asks_for_them(file: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.load(RECIPES[file])
    mend = "data.source is missing: name a folder of pictures by `data.source=FOLDER`."
    assert str(caught.value) == f"{RECIPES[file]}: {mend}"


def test_own_pictures_are_trained_on_by_the_papers_network_on_a_card() -> None:
    own, papers = (Recipe.load(RECIPES[name], {"data.source": "x"}) for name in ("photos256", "dog"))
    assert own.changed_keys(papers) == ["name", "train.calibrate"]


AUTO = MINIMAL + "resolution = {}\n[distance]\nkind = 'bands'\n[generator]\nblocks = 'auto'\ndepth = {}\n"


def test_blocks_follow_from_resolution_and_depth(tmp_path: Path) -> None:
    papers, demo = load(tmp_path, MINIMAL), Recipe.load(RECIPES["faces"])
    assert load(tmp_path, AUTO.format(256, 4)).generator == papers.generator
    assert load(tmp_path, MINIMAL + "[generator]\nblocks = 'auto'") == papers
    keys = load(tmp_path, AUTO.format(32, 2)).generator.model_dump()
    assert keys["blocks"] == demo.generator.model_dump()["blocks"]
    assert load(tmp_path, AUTO.format(64, "2\npatch = 2")).generator.model_dump() == keys | {"patch": 2}
    assert "depth" not in keys
    for resolution in (4, 7, 8, 48, 64, 1024, 8192):
        recipe = load(tmp_path, AUTO.format(resolution, 3))
        assert recipe.generator.shape == (3, resolution, resolution)
        assert load(tmp_path, recipe.to_toml()) == recipe  # which has the blocks themselves
    wider = load(tmp_path, AUTO.format(64, 3), **{"data.resolution": 128})
    assert wider.generator.shape == (3, 128, 128)
    with torch.device("meta"):
        assert Generator(**wider.generator.model_dump())._hub_mixin_config == wider.generator.model_dump()


def test_other_blocks_or_another_decoder_leave_the_depth_behind(tmp_path: Path) -> None:
    recipe = load(tmp_path, AUTO.format(64, 3), **{"generator.blocks": "32x1,64m32"})
    assert recipe.generator.model_dump()["blocks"] == "32x1,64m32"
    points = {"data.source": "toy2d", "distance.kind": "euclidean", "generator.decoder": "mlp"}
    assert not load(tmp_path, AUTO.format(64, 3), **points).generator.makes_images


@pytest.mark.parametrize("name", KNOWN)
def test_every_set_of_the_papers_trains_by_rs_imle(name: str) -> None:
    recipe = Recipe.load(RECIPES[name])
    selection, train = recipe.selection, recipe.train
    assert (selection.strategy, selection.pool, selection.noise) == ("rejection", "10n", 0.001)
    assert selection.parameters == {"epsilon": 0.15, "refresh": 30, "share": 1.0}
    assert (recipe.distance.kind, recipe.distance.normalize, recipe.distance.projection_dim) == ("lpips", True, 800)
    assert recipe.distance.search == "pixels"
    assert (train.learning_rate, train.warmup, train.batch_size, train.iterations) == (2e-4, 10, 4, 200_000)


@pytest.mark.parametrize("name", SCRIPTS)
def test_six_sets_train_by_adaptive_imle_too_as_its_authors_scripts_say(name: str) -> None:
    recipe = Recipe.load(RECIPES[f"adaptive/{name}"])
    selection, p = recipe.selection, recipe.selection.parameters
    assert (selection.strategy, recipe.distance.normalize, recipe.train.iterations) == ("adaptive", False, 200_000)
    assert (recipe.distance.search, recipe.train.warmup) == ("features", 100)
    paces = p["delta"], selection.pool, p["staleness"], p["forced_refresh"]
    assert (*paces, recipe.train.learning_rate) == SCRIPTS[name]
    differing = {key.split(".")[0] for key in recipe.changed_keys(Recipe.load(RECIPES[name]))}
    assert differing == {"name", "distance", "selection", "train"}  # the same pictures and the same network


def test_a_written_recipe_reads_back_the_same_with_every_default_visible(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL)
    text = recipe.to_toml()
    assert load(tmp_path, text) == recipe
    for key in ("mirror", "bottleneck", "projection_dim", "refresh", "betas", "keep"):
        assert f"\n{key} = " in text


def test_a_recipe_cannot_be_changed(recipe: Recipe) -> None:
    with pytest.raises(ValidationError):
        recipe.train.seed = 3  # type: ignore[misc]


def test_the_default_generator_is_the_papers(tmp_path: Path) -> None:
    keys = load(tmp_path, MINIMAL).generator.model_dump()
    with torch.device("meta"):
        assert Generator()._hub_mixin_config == keys
    assert list(keys) == [
        *("latent_dim", "mapping", "decoder", "mapping_layers"),
        *("width", "blocks", "bottleneck", "start", "upsampling", "patch"),
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=8", ("train.batch_size", 8)),
        ("train.betas=[0.8, 0.9]", ("train.betas", [0.8, 0.9])),
        ("data.mirror=true", ("data.mirror", True)),
        ("data.source=some/folder", ("data.source", "some/folder")),
        ("data.source=2024-05-01", ("data.source", "2024-05-01")),
        ("data.source='a=b'", ("data.source", "a=b")),
    ],
)
def test_an_override_is_read_as_toml_where_it_can_be(override: str, expected: tuple[str, object]) -> None:
    assert parse_override(override) == expected


def test_overrides_replace_and_add_keys(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, MINIMAL, **{"train.batch_size": 8, "selection.strategy": "adaptive", "selection.delta": 0.5}
    )
    assert recipe.train.batch_size == 8
    assert recipe.selection.parameters["delta"] == 0.5


def test_another_strategy_leaves_the_old_ones_parameters_behind(tmp_path: Path) -> None:
    text = MINIMAL + "[selection]\nstrategy = 'vanilla'\nrefresh = 3\n"
    recipe = load(tmp_path, text, **{"selection.strategy": "adaptive"})
    assert "refresh" not in recipe.selection.parameters
    assert load(tmp_path, text, **{"selection.strategy": "rejection"}).selection.parameters["refresh"] == 3
    with pytest.raises(InputError, match=r"selection\.refresh is not a key"):
        load(tmp_path, text, **{"selection.strategy": "adaptive", "selection.refresh": 2})


def test_another_mapping_or_decoder_leaves_the_old_ones_parameters_behind(tmp_path: Path) -> None:
    text = MINIMAL + "[generator]\nmapping_layers = 2\nwidth = 9\nbottleneck = 0.5\n"
    keys = load(tmp_path, text, **{"generator.mapping": "none"}).generator.model_dump()
    assert "mapping_layers" not in keys
    assert (keys["width"], keys["bottleneck"]) == (9, 0.5)
    points = {"data.source": "toy2d", "distance.kind": "euclidean", "generator.decoder": "mlp"}
    assert load(tmp_path, text, **points).generator.model_dump() == {
        "latent_dim": 1024,
        "mapping": "mlp",
        "decoder": "mlp",
        "mapping_layers": 2,
        "width": 9,
    }
    with pytest.raises(InputError, match=r"generator\.bottleneck is not a key of decoder 'mlp'"):
        load(tmp_path, text, **points, **{"generator.bottleneck": 0.3})


def test_whether_a_recipe_makes_images_follows_from_its_decoder(tmp_path: Path) -> None:
    images, points = load(tmp_path, MINIMAL).generator, load(tmp_path, TOY).generator
    assert (images.shape, images.makes_images) == ((3, 256, 256), True)
    assert (points.shape, points.makes_images) == ((2,), False)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + MINIMAL.replace("\n", "\r\n")).name == "x"


@pytest.mark.parametrize(("pool", "size"), [("10n", 410), ("3 n", 123), (50, 50), ("50", 50)])
def test_the_pool_is_a_number_or_a_multiple_of_n(tmp_path: Path, pool: int | str, size: int) -> None:
    assert load(tmp_path, MINIMAL, **{"selection.pool": pool}).selection.pool_size(41) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", "not TOML"),
        ("name = 'x'", "data is missing"),
        (MINIMAL + "sorce = 1", "data.sorce is not a key; did you mean 'source'?"),
        (MINIMAL + "[train]\niterations = 'many'", "train.iterations = 'many'"),
        (MINIMAL + "[train]\niterations = 0", "train.iterations = 0"),
        (MINIMAL + "[selection]\nstrategy = 'vanila'", "did you mean 'vanilla'?"),
        (MINIMAL + "[selection]\nrefesh = 2", "selection.refesh is not a key; did you mean 'refresh'?"),
        (MINIMAL + "[selection]\nrefresh = 0", "selection.refresh = 0"),
        (MINIMAL + "[selection]\npool = 'ten'", "selection.pool"),
        (MINIMAL + "[selection]\nstrategy = 'adaptive'\ndelta = 1.0", "selection.delta = 1.0"),
        (MINIMAL + "[selection]\nstrategy = 'rejection'\nepsilon = -1", "selection.epsilon: -1 is neither"),
        (MINIMAL + "[generator]\nblocks = '4x1,8m4'", "generator.blocks end at resolution 8, data.resolution is 256"),
        (MINIMAL + "[generator]\nblocks = '4x1,16m8'", "'16m8' starts at 8, the block before it ends at 4"),
        (AUTO.format(100, 2), "data.resolution of 100 pixels are not 4 to 7 pixels doubled some times: take 96"),
        (AUTO.format(99, 2), "99 pixels are not 4 to 7 pixels doubled some times: take 96"),
        (AUTO.format(70, "2\npatch = 4"), "data.resolution of 70 pixels are not 4 to 7 pixels, times 4, doubled"),
        (AUTO.format(64, "2\npatch = 99"), "generator.patch = 99: input should be less than or equal to 16"),
        (MINIMAL + "[generator]\nblocks = '4x1,8m4'\npatch = 2", "resolution 16, in patches of generator.patch = 2"),
        (AUTO.format(64, 0), "generator.depth = 0: it must be a whole number from 1 to 64"),
        (AUTO.format(64, "'x'"), "generator.depth = 'x': it must be"),
        (AUTO.format("'x'", 2), "data.resolution = 'x'"),
        (AUTO.format(64, 2).replace("auto", "4x1,64m4"), 'generator.depth is for generator.blocks = "auto"'),
        ("[generator]\nblocks = 'auto'", "name is missing; data is missing"),
        (MINIMAL + "[train]\npatience = 3\n[log]\nmeasure_every = 0", "train.patience counts measurements"),
        (MINIMAL + "[generator]\nwidht = 3", "generator.widht is not a key; did you mean 'width'?"),
        (MINIMAL + "[generator]\nwidth = 0\nmapping_layers = 0", "generator.mapping_layers = 0: input should be"),
        (MINIMAL + "[generator]\nwidth = 0\nmapping_layers = 0", "; generator.width = 0: input should be"),
        (MINIMAL + "[generator]\nlatent_dim = 0", "generator.latent_dim = 0"),
        (MINIMAL + "[generator]\nmapping = 'mpl'", "generator.mapping 'mpl' is not known: did you mean 'mlp'?"),
        (MINIMAL + "[generator]\ndecoder = 7", "generator.decoder '7' is not known: choose one of mlp, vdvae."),
        (MINIMAL + "[generator]\ndecoder = 'mlp'", "images need generator.decoder 'vdvae'"),
        ("generator = 3\n" + MINIMAL, "generator = 3: input should be a valid"),
        (TOY + "[log]\nfid_every = 3", "log.fid_every is for pictures, not for data.source 'toy2d'"),
        (TOY.replace("euclidean", "pixels"), "data.source 'toy2d' needs generator.decoder 'mlp'"),
        (MINIMAL + "[distance]\nkind = 'euclidean'", "distance.kind"),
        ("name = 'x'\n[data]\nsource = 'toy2d'", "generator.decoder 'mlp'"),
        (
            MINIMAL + "[selection]\nstrategy = 'rejection'\nepsilon = 1e308",
            "1e+308 is neither a distance from 0 to 1000000",
        ),
        (
            MINIMAL + f"[selection]\nstrategy = 'rejection'\nepsilon = 0x{'f' * 5000}",
            "epsilon: a number of thousands of",
        ),
        (MINIMAL + f"[selection]\npool = 0x{'f' * 5000}", "selection.pool: a number of thousands of digits is neither"),
        (MINIMAL + f"[selection]\npool = '{'9' * 5000}n'", "is neither a number of samples nor"),
        (MINIMAL + f"[train]\nseed = 0x{'f' * 5000}", "train.seed = a number of thousands of digits: input should be"),
        (MINIMAL + f"[train]\nema = 0x{'f' * 5000}", "train.ema = a number of thousands of digits: input should be"),
        (MINIMAL + f"[train]\nseed = {'9' * 5000}", "a number in it has thousands of digits"),
        (
            MINIMAL + "[train]\nlearning_rate = 1e308",
            "train.learning_rate = 1e+308: input should be less than or equal to",
        ),
        (MINIMAL + "[train]\nwarmup = 1e400", "train.warmup = inf: input should be a"),
        (MINIMAL + f"[train]\nseed = {'[' * 500}{']' * 500}", "its values are nested too deeply"),
        (MINIMAL + f"[train]\nseed = {'[' * 90}{']' * 90}", "train.seed = [[[...]]]: input should be"),
        (MINIMAL + f"[data{'.a' * 500}]\nb = 1", "data.a is not a key"),
        (MINIMAL + f"[train]\nseed = '{'x' * 5000}'", "xxx...xxx"),
        (MINIMAL + "[train]\n'a\\b' = 1", "train.'a\\\\b' is not a key"),
        (MINIMAL + '[generator]\n"a\\nb" = 1', "generator.'a\\nb' is not a key"),
        (MINIMAL + f"[generator]\ndecoder = '{'x' * 5000}'", "xxx' is not known: choose one of"),
        (MINIMAL + "[generator]\nlatent_dim = 1048577", "less than or equal to 1048576"),
        (MINIMAL + "[generator]\nblocks = '4x999,8m4,8x9'", "'8x9' makes more than 1000 blocks"),
        (MINIMAL + "[generator]\nblocks = '4x1,16384m4'", "works at 16384 pixels, more than 8192"),
        (MINIMAL + f"[generator]\nblocks = '4x{'9' * 5000}'", "is neither RxK"),
        ('name = "x"\n[data]\nsource = "a\\u0000b"', "data.source = 'a\\x00b': string should match"),
        (f"name = '{'x' * 200}'\n[data]\nsource = 'faces'", "at most 100 characters"),
        (MINIMAL + "#" * 2**16, "is not a recipe: it has more than 65536 bytes"),
        ("name = '../x'\n[data]\nsource = 'faces'", "name = '../x'"),
    ],
)
def test_a_bad_recipe_is_one_sentence_that_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "recipe.toml" in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "0x" + "f" * 5000, "1e308", "{a = {b = 1}}"])
def test_an_absurd_override_is_one_short_sentence(tmp_path: Path, value: str) -> None:
    key, parsed = parse_override(f"train.seed={value}")
    with pytest.raises(InputError, match=r"recipe\.toml: train\.seed = ") as caught:
        load(tmp_path, MINIMAL, **{key: parsed})
    assert len(str(caught.value)) < 300


def fields_of_all_sections() -> list[tuple[str, FieldInfo]]:
    sections = [field.annotation for field in Recipe.model_fields.values() if hasattr(field.annotation, "model_fields")]
    parameters = [model for registry in CHOICES for model in registry.built_in.values()]
    return [pair for model in (*sections, *parameters) for pair in model.model_fields.items()]


def test_every_number_of_a_recipe_is_bounded() -> None:
    """By a bound of its field, or by the pattern of a pool or the check of a radius."""
    unbounded = [
        name
        for name, field in fields_of_all_sections()
        if field.annotation in (int, float) and not any(isinstance(bound, Le | Lt) for bound in field.metadata)
    ]
    assert not unbounded


def test_every_key_carries_its_meaning() -> None:
    assert not [name for name, field in fields_of_all_sections() if not field.description]


def test_a_file_without_an_end_is_no_recipe() -> None:
    with pytest.raises(InputError, match=r"/dev/zero is not a recipe: it has more than 65536 bytes"):
        Recipe.load("/dev/zero")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        Recipe.load(tmp_path / "none.toml")


def test_two_recipes_differ_in_the_keys_that_differ(tmp_path: Path) -> None:
    one, other = load(tmp_path, MINIMAL), load(tmp_path, MINIMAL, **{"train.seed": 1, "selection.refresh": 3})
    assert one.changed_keys(other) == ["selection.refresh", "train.seed"]
    assert one.changed_keys(one) == []
