"""`imletriton status` on runs in every state."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_cli

from imletriton.commands.fit import fit
from imletriton.commands.status import status
from imletriton.errors import InputError, Notice
from imletriton.recipe import Recipe
from imletriton.runs.run import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def done(recipe_file: Path) -> Run:
    return fit(Recipe.load(recipe_file, {"log.measure_every": 20}), device="cpu")


def test_a_run_that_is_done(done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "status") == 0
    shown = capsys.readouterr().out
    for words in ("tiny-001, done", "60 of 60 (100 %)", "samples/000060.png", "checkpoints/000060", "samples to data"):
        assert words in shown
    assert run_cli(monkeypatch, "status", str(done.path), "--json", "--follow") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["step"], told["steps"], told["seconds_left"]) == ("done", 60, 60, None)
    assert len(told["curves"]["samples_to_data"]) == 3
    assert told["figures"]["loss"] > 0
    assert told["sheet"] == "runs/tiny-001/samples/000060.png"


def test_a_run_that_was_stopped_can_go_further(done: Run) -> None:
    longer = Recipe.load(done.recipe_file, {"train.iterations": 90})
    done.recipe_file.write_text(longer.to_toml())
    told = status(done.path)
    assert (told.state, told.step, told.steps) == ("stopped", 60, 90)
    shutil.rmtree(done.path / "checkpoints")
    shutil.rmtree(done.samples)
    done.log_file.unlink()
    told = status()
    assert (told.state, told.step, told.checkpoint, told.sheet, told.figures) == ("stopped", 0, None, None, {})


def test_a_run_that_no_longer_improved_is_done(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.training.watch._mean_distance", lambda queries, pool: 0.5)
    changes = {"log.measure_every": 5, "train.patience": 2, "train.iterations": 1000}
    run = fit(Recipe.load(recipe_file, changes), device="cpu")
    told = status(run.path)
    assert (told.state, told.step, told.steps) == ("done", 15, 1000)
    assert told.notes == ["It ended at step 15, as it no longer improved (train.patience)."]


def test_a_run_that_trains_tells_the_time_left_and_the_others(done: Run, recipe: Recipe) -> None:
    other = Run(Path("runs/tiny-002"))
    with other.lock(), done.lock():
        told = status(done.path)
        assert (told.state, told.also_training) == ("training", ["runs/tiny-002"])
        assert told.seconds_left == 0
        recipe = recipe.with_iterations(600)
        done.recipe_file.write_text(recipe.to_toml())
        seconds = [record.seconds or 0.0 for record in done.log() if record.seconds]
        left = status(done.path).seconds_left
        assert left == pytest.approx((seconds[-1] - seconds[0]) / 50 * 540, abs=20)
    assert not done.is_locked
    with done.lock():  # asking has not taken the lock away
        pass


def test_what_is_damaged_is_told(done: Run) -> None:
    newest = done.checkpoints[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    told = status(done.path)
    assert told.state == "damaged"
    assert "000060/model.safetensors is damaged" in told.notes[0]
    assert "000050 is used instead" in told.notes[0]
    for folder in done.checkpoints:
        (folder / "trainer.json").write_text("{")
    assert status(done.path).state == "damaged"
    with done.log_file.open("a") as file:
        file.write('{"step": "x')
    with pytest.warns(Notice, match="damaged lines"):
        assert status(done.path).step == 60
    done.recipe_file.write_text("name = ")
    with pytest.warns(Notice, match="damaged lines"):
        told = status(done.path)
    assert (told.state, told.steps) == ("damaged", None)
    assert any("recipe.toml is not TOML" in note for note in told.notes)


def test_where_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No run lies in runs/"):
        status()
    assert run_cli(monkeypatch, "status", "nowhere") == 2


def test_a_model_of_points_has_a_status_too() -> None:
    fit(Recipe.load(ROOT / "recipes/toy2d.toml", {"train.iterations": 20, "log.measure_every": 10}), device="cpu")
    told = status()
    assert told.state == "done"
    assert len(told.curves["samples_to_data"]) == 2


def test_following_ends_with_the_run(recipe_file: Path) -> None:
    command, env = [sys.executable, "-m", "imletriton"], os.environ | {"PYTHONPATH": str(ROOT)}
    long = [*command, "fit", str(recipe_file), "--device", "cpu", "--set", "train.iterations=100000"]
    with subprocess.Popen(long, env=env, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        while not training.stdout.readline().startswith("step 10"):
            assert training.poll() is None
        assert status().state == "training"
        with subprocess.Popen(
            [*command, "status", "--follow"], env=env, stdout=subprocess.PIPE, text=True
        ) as following:
            assert following.stdout is not None
            assert following.stdout.readline().startswith("step ")
            training.terminate()
            training.stdout.read()
            shown = following.stdout.read()
            assert following.wait() == 0
    assert "runs/tiny-001, stopped" in shown
