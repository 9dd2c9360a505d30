"""Packaged recipes are listed, copied and trained by their names, from any folder."""

import re
from pathlib import Path

import pytest
from conftest import run_cli

from imletriton.commands.recipes import copy_recipe, recipe_keys, recipes
from imletriton.errors import InputError
from imletriton.recipe import RECIPES, Recipe, packaged_recipes


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_describes_every_recipe_by_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {recipe.name: recipe for recipe in recipes()}
    assert listed.keys() == packaged_recipes().keys()
    assert listed["dog"][1:] == ("RS-IMLE", 256, "AnimalFace Dog (Si and Zhu 2012): 389 images at 256x256")
    assert listed["adaptive/obama"][1:] == ("Adaptive IMLE", 256, "Obama (Zhao et al. 2020): 100 images at 256x256")
    assert listed["faces64"][1:] == ("RS-IMLE", 64, "The demo: 100 drawn faces at 64x64, by calibrated IMLE")
    assert listed["toy2d"].resolution is None
    assert run_cli(monkeypatch, "recipes") == 0
    out = capsys.readouterr().out
    assert re.search(r"^adaptive/dog +Adaptive IMLE +256 +AnimalFace Dog", out, re.MULTILINE)
    assert "imletriton recipes copy NAME" in out


def test_a_copy_has_the_comments_and_never_overwrites(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "recipes", "copy", "adaptive/dog") == 0
    assert "Then: imletriton fit dog-adaptive.toml" in capsys.readouterr().out
    copied = Path("dog-adaptive.toml")
    assert copied.read_bytes() == (RECIPES / "adaptive/dog.toml").read_bytes()
    copied.write_text("edited")
    Path("link.toml").symlink_to("nowhere")
    for arguments, words in (
        (["adaptive/dog"], "dog-adaptive.toml exists already: remove it, or name another file."),
        (["dog", "dog-adaptive.toml"], "dog-adaptive.toml exists already"),
        (["dog", "link.toml"], "link.toml exists already"),
        (["dgo"], "dgo is neither a file nor the name of a recipe that comes with imletriton: did you mean dog?"),
        (["dog", "no/folder.toml"], "no/folder.toml cannot be written (No such file or directory)"),
    ):
        assert run_cli(monkeypatch, "recipes", "copy", *arguments) == 2
        assert words in capsys.readouterr().err
    assert copied.read_text() == "edited"
    assert not Path("nowhere").exists()
    Path("folder").mkdir()
    assert copy_recipe("faces", "folder") == Path("folder/faces.toml")
    assert Recipe.load("folder/faces.toml") == Recipe.load("faces")


def test_a_recipe_that_leaves_the_pictures_open_is_listed_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (RECIPES / "faces.toml").read_text().replace('source = "faces"', "")
    Path("packaged").mkdir()
    Path("packaged/photos.toml").write_text(f"# Pictures of your own,\n# at 32x32:\n#   imletriton fit\n{text}")
    monkeypatch.setattr("imletriton.recipe.RECIPES", Path("packaged"))
    assert recipes() == [("photos", "vanilla IMLE", 32, "Pictures of your own, at 32x32")]
    assert copy_recipe("photos") == Path("faces.toml")


def test_every_key_is_listed_with_its_type_default_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {key.name: key for key in recipe_keys()}
    for name in packaged_recipes():
        values = Recipe.load(name, {"data.source": "faces"} if name.startswith("photos") else {}).model_dump()
        sections = [(f"{section}.", part) for section, part in values.items() if isinstance(part, dict)]
        assert {f"{section}{key}" for section, part in sections for key in part} <= keys.keys()
    assert all(key.meaning.endswith(".") and key.kind for key in keys.values())
    assert keys["train.batch_size"][:3] == ("train.batch_size", "integer", "4")
    assert keys["log.trackers"][1:3] == ('list of "tensorboard" | "wandb" | "trackio"', '["tensorboard"]')
    assert keys["selection.epsilon"][1:3] == ('number | "auto"', "0.15")
    assert keys["selection.epsilon"].meaning.startswith('For strategy "rejection" or "adaptive-rejection": ')
    assert keys["data.source"].default == ""
    assert run_cli(monkeypatch, "recipes", "keys") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^train\.learning_rate = 0\.0002  \(number\)\n    \S", shown, re.MULTILINE)
    assert re.search(r"^data\.source = \.\.\.  \(string, required\)\n", shown, re.MULTILINE)


def test_a_name_is_that_of_a_packaged_recipe_where_no_file_has_it() -> None:
    assert Recipe.load("adaptive/dog").name == "dog-adaptive"
    assert Recipe.load("./faces", {"train.iterations": 9}).train.iterations == 9
    text = (RECIPES / "faces.toml").read_text()
    Path("dog").write_text(text.replace('name = "faces"', 'name = "mine"'))
    assert Recipe.load("dog").name == "mine"
    for name, words in (
        ("recipes/dog.toml", "did you mean dog"),
        ("adaptive/dgo", "did you mean adaptive/dog"),
        ("nothing-like-it", "`imletriton recipes` lists them"),
        ("../etc/passwd", "`imletriton recipes` lists them"),
    ):
        with pytest.raises(InputError, match=words):
            Recipe.load(name)
    with pytest.raises(InputError, match=r"/none.toml cannot be read: No such file"):
        Recipe.load(Path("none.toml").absolute())


def test_a_packaged_recipe_is_trained_and_resumed_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--device", "cpu", "--set", "log.every=2", "--set", "data.source=toy2d"]
    assert run_cli(monkeypatch, "fit", "toy2d", *small, "--set", "train.iterations=4") == 0
    assert run_cli(monkeypatch, "fit", "toy2d", "--resume", *small, "--set", "train.iterations=6") == 0
    assert "runs/toy2d-001: on from step 4, 6 steps" in capsys.readouterr().out
    assert run_cli(monkeypatch, "fit", "skulls") == 2  # pictures are looked for in the folder that one stands in
    assert "put its pictures into datasets/skulls." in capsys.readouterr().err
