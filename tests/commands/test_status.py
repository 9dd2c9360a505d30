"""`imletriton status` on runs in every state."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_cli

from imletriton.commands.status import Status, status
from imletriton.errors import InputError, Notice
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import load_checkpoint, save_checkpoint
from imletriton.runs.run import Run
from imletriton.runs.schema import LogRecord

WRITTEN = 1_000_000_000  # when the log was written last


@pytest.fixture
def done(own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of 20 steps, a second each, with two measurements of distances."""
    monkeypatch.chdir(tmp_path)
    records = [LogRecord(step=step, seconds=step, loss=0.5) for step in (10, 20)]
    records += [LogRecord(step=step, samples_to_data=1 / step) for step in (10, 20)]
    own_run.log_file.write_text("".join(f"{record.model_dump_json(exclude_unset=True)}\n" for record in records))
    os.utime(own_run.log_file, (WRITTEN, WRITTEN))
    monkeypatch.setattr("time.time", lambda: WRITTEN + 3)
    return Run(Path("runs/tiny-001"))


def change(run: Run, **overrides: int) -> None:
    recipe = Recipe.load(run.recipe_file, {f"train.{key}": value for key, value in overrides.items()})
    run.recipe_file.write_text(recipe.to_toml())


def test_a_run_that_is_done(done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "status") == 0
    shown = capsys.readouterr().out
    for words in ("tiny-001, done", "20 of 20 (100 %)", "samples/000020.png", "checkpoints/000020", "samples to data"):
        assert words in shown
    assert run_cli(monkeypatch, "status", str(done.path), "--json", "--follow") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["step"], told["steps"], told["seconds_left"]) == ("done", 20, 20, None)
    assert told["curves"] == {"samples_to_data": [0.1, 0.05]}
    assert told["figures"] == {"loss": 0.5, "samples_to_data": 0.05}
    assert told["sheet"] == "runs/tiny-001/samples/000020.png"


def test_a_run_that_was_stopped_can_go_further(done: Run) -> None:
    change(done, iterations=90)
    told = status(done.path)
    assert (told.state, told.step, told.steps) == ("stopped", 20, 90)
    shutil.rmtree(done.path / "checkpoints")
    shutil.rmtree(done.samples)
    done.log_file.unlink()
    told = status()
    assert (told.state, told.step, told.checkpoint, told.sheet, told.figures) == ("stopped", 0, None, None, {})


def test_a_run_that_no_longer_improved_is_done(done: Run) -> None:
    change(done, iterations=1000, patience=2)
    _, tensors, state = load_checkpoint(done.checkpoints[-1])
    model = Generator.from_pretrained(done.checkpoints[-1])
    shutil.rmtree(done.checkpoints[-1])
    save_checkpoint(done.path, 20, model, tensors, state | {"stale": 2}, keep=3)
    told = status(done.path)
    assert (told.state, told.step, told.steps) == ("done", 20, 1000)
    assert told.notes == ["It stopped at step 20, as it no longer improved (train.patience)."]


def test_a_run_that_trains_tells_the_time_left_and_the_others(done: Run) -> None:
    other = Run(Path("runs/tiny-002"))
    with other.lock(), done.lock():
        told = status(done.path)
        assert (told.state, told.also_training) == ("training", ["runs/tiny-002"])
        assert (told.seconds_left, told.seconds_silent) == (0, 3)
        change(done, iterations=600)
        assert status(done.path).seconds_left == 580 - 3
    assert not done.is_locked
    with done.lock():  # asking has not taken the lock away
        pass


def test_what_is_damaged_is_told(done: Run) -> None:
    newest = done.checkpoints[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    told = status(done.path)
    assert told.state == "damaged"
    assert "000020/model.safetensors is damaged" in told.notes[0]
    assert "000010 is used instead" in told.notes[0]
    for folder in done.checkpoints:
        (folder / "trainer.json").write_text("{")
    assert status(done.path).state == "damaged"
    with done.log_file.open("a") as file:
        file.write('{"step": "x')
    with pytest.warns(Notice, match="damaged lines"):
        assert status(done.path).step == 20
    done.recipe_file.write_text("name = ")
    with pytest.warns(Notice, match="damaged lines"):
        told = status(done.path)
    assert (told.state, told.steps) == ("damaged", None)
    assert any("recipe.toml is not TOML" in note for note in told.notes)


def test_where_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="There is no run in runs/"):
        status()
    assert run_cli(monkeypatch, "status", "nowhere") == 2


def test_following_ends_with_the_run(
    done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = iter([10, 10, 15, 20, 20])

    def ask(run: Path | None, thorough: bool = True) -> Status:
        step = next(steps)
        changes = {"state": "stopped" if step == 20 else "training", "step": step, "seconds_left": 90.0}
        return status(run).model_copy(update=changes)

    monkeypatch.setattr("imletriton.commands.status.status", ask)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert run_cli(monkeypatch, "status", "--follow") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^step (\d+)/20 .*  0:01:30 left$", shown, re.MULTILINE) == ["10", "15"]
    assert "runs/tiny-001, stopped" in shown
