"""The commands as functions: public, usable with runs and paths, with progress by default."""

import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from small_networks import SmallVGG

import imletriton
from imletriton import console
from imletriton.errors import InputError
from imletriton.recipe import Recipe
from imletriton.runs.run import Run


@pytest.fixture
def trained(own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run below runs/ in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imletriton.share.views.RECALLED", 20)
    monkeypatch.setattr("imletriton.metrics.networks.VGG16", SmallVGG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return own_run


@pytest.mark.parametrize("name", imletriton.__all__)
def test_what_is_public_is_documented_and_typed(name: str) -> None:
    value = getattr(imletriton, name)
    assert getattr(imletriton, name) is value
    assert value.__name__ == name
    assert name in dir(imletriton)
    documented = inspect.getdoc(value)
    assert documented and documented[0].isupper()
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert name == "silent" or f"    {parameter.name}: " in documented, parameter.name


def test_a_run_its_folder_and_nothing_for_the_newest_run_mean_the_same_model(trained: Run) -> None:
    expected = imletriton.Generator.from_pretrained(trained.path).sample(2)
    for source in (trained, str(trained.path), trained.checkpoints[-1]):
        assert torch.equal(imletriton.Generator.from_pretrained(source).sample(2), expected)
    for source in (trained, None):
        folder = imletriton.generate(source, 2, progress=imletriton.silent).folder
        assert folder.resolve() == trained.generated("000020", "seed-0")
        assert imletriton.picture(source).size == Image.open(imletriton.show(source, "samples")["samples"]).size
        assert imletriton.report(source).resolve() == trained.report_file
        assert imletriton.evaluate(source, metrics=["recall"], n=4, progress=imletriton.silent).step == 20


def test_a_picture_is_drawn_without_being_written(trained: Run) -> None:
    before = sorted(trained.path.rglob("*"))
    assert isinstance(imletriton.picture(trained, "curves"), Image.Image)
    assert sorted(trained.path.rglob("*")) == before
    with pytest.raises(InputError, match="did you mean 'samples'"):
        imletriton.picture(trained, "sample")
    with pytest.raises(InputError, match="has no thresholds to show"):
        imletriton.picture(trained, "thresholds")


def test_progress_is_shown_by_default_and_not_where_somebody_else_is_told(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train.iterations": 10}
    imletriton.fit(Recipe.load(trained.recipe_file, changes), tmp_path / "shown", "cpu")
    assert re.search(r"shown: a new run, 10 steps on cpu\n(.*\n)*step 10/10  loss", capsys.readouterr().out)
    told = list[int]()

    class Listener(imletriton.Reporter):
        def step(self, step: int) -> None:
            told.append(step)

    imletriton.fit(Recipe.load(trained.recipe_file, changes), tmp_path / "told", "cpu", False, Listener())
    assert told == [*range(1, 11)]
    imletriton.generate(trained, 3, out=tmp_path / "gen", progress=imletriton.silent)
    assert capsys.readouterr() == ("", "")


def test_bars_are_live_in_a_terminal_and_in_a_notebook_with_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, file = Console(file=io.StringIO(), force_terminal=True), Console(file=io.StringIO())
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    for widgets in (True, False):
        monkeypatch.setattr(console, "find_spec", lambda name, there=widgets: there or None)
        assert [console.shows_bars(on) for on in (terminal, file, notebook)] == [True, False, widgets]
