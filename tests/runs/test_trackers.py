"""Trackers get what log.jsonl holds and the sheets of samples, go on in a resumed run, and never end a training."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from conftest import run_cli

from imletriton.commands.fit import fit
from imletriton.errors import InputError, Notice
from imletriton.recipe import Recipe
from imletriton.runs import trackers
from imletriton.runs.run import Run
from imletriton.runs.trackers import TRACKERS, check_trackers, tracker_id

Rows = dict[int, set[str]]  # the keys that a tracker has of each step


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a file that wandb writes, which is a log as LevelDB has it, after a header of 7 bytes."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_wandb(run: Run) -> tuple[Rows, set[str], list[int]]:
    """What wandb was told: the keys by steps, the ids of its runs, and their exit codes."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, ids, codes = Rows(), set[str](), list[int]()
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            elif kind == "exit":
                codes.append(record.exit.exit_code)
            elif kind == "history":
                values = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
                step = int(values["_step"])
                assert step not in rows  # each step is told once
                rows[step] = {key for key in values if not key.startswith("_")}
    return rows, ids, codes


def of_trackio(folder: Path) -> tuple[Rows, set[str]]:
    """What Trackio was told: the keys by steps, and the names of its runs."""
    with sqlite3.connect(folder / "imletriton.db") as database:
        found = database.execute("select run_name, step, metrics from metrics").fetchall()
    rows = Rows()
    for _, step, metrics in found:
        keys = json.loads(metrics).keys()
        assert not rows.get(step, set()) & keys  # each value is told once
        rows.setdefault(step, set()).update(keys)
    return rows, {name for name, _, _ in found}


def of_tensorboard(run: Run) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, rows = EventAccumulator(str(run.path)), Rows()
    board.Reload()
    tags = [(tag, board.Scalars(tag)) for tag in board.Tags()["scalars"]]
    for tag, events in [*tags, *((tag, board.Images(tag)) for tag in board.Tags()["images"])]:
        for event in events:
            rows.setdefault(event.step, set()).add(tag)
    return rows


def stopped_and_resumed(recipe: Recipe, folder: Path) -> None:
    """Trains, loses the last checkpoint, so that steps 31 to 40 come again, and goes on."""
    run = fit(recipe, folder, "cpu")
    shutil.rmtree(run.checkpoints[-1])
    fit(Recipe.load(run.recipe_file, {"train.iterations": 60}), run.path, "cpu", resume=True)


@pytest.mark.slow
def test_all_trackers_are_told_the_same_and_go_on_in_a_resumed_run(recipe_file: Path, tmp_path: Path) -> None:
    changes = {"log.trackers": ["wandb", "tensorboard", "trackio", "wandb"], "train.iterations": 40}
    recipe = Recipe.load(recipe_file, changes | {"log.samples_every": 20, "log.checkpoint_every": 30})
    run = Run(tmp_path / "run")
    env = {"WANDB_MODE": "offline", "TRACKIO_DIR": tmp_path / "trackio"}  # which Trackio reads when it is imported
    training = processes.start(tmp_path / "told", stopped_and_resumed, recipe, run.path, **env)
    assert processes.exit_code(training) == 0
    expected: Rows = {record.step: {*record.to_json()} - {"step"} for record in run.log()}
    for step in (20, 40, 60):
        expected[step].add("samples")
    assert list(expected) == [10, 20, 30, 40, 50, 60]
    assert of_tensorboard(run) == expected
    assert of_wandb(run) == (expected, {tracker_id(run)}, [0, 0])
    assert of_trackio(tmp_path / "trackio") == (expected, {tracker_id(run)})


def test_an_absent_tracker_is_told_with_its_remedy_before_anything_is_written(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def absent(name: str) -> str:
        if name == "wandb":
            raise trackers.PackageNotFoundError
        return "1"

    monkeypatch.setattr(trackers, "version", absent)
    Path("wandb").mkdir()  # as a run's folder has one
    assert run_cli(monkeypatch, "fit", str(recipe_file), "--set", 'log.trackers=["trackio", "wandb"]') == 2
    told = 'log.trackers names wandb, which is not installed: run `pip install "imletriton[wandb]"`, or leave it out'
    assert told in capsys.readouterr().err
    with pytest.raises(InputError, match=r"log\.trackers names wandb"):
        fit(Recipe.load(recipe_file, {"log.trackers": ["wandb"]}), tmp_path / "run", device="cpu")
    assert not Path("runs").exists() and not Path("run").exists()
    check_trackers(())
    for wrong, words in (
        ("wandb", "log.trackers = 'wandb': input should be a list"),
        (["wdb"], "log.trackers.0 = 'wdb'"),
    ):
        with pytest.raises(InputError, match=words):
            Recipe.load(recipe_file, {"log.trackers": wrong})


@pytest.mark.parametrize("fails", ["start", "write", "picture", "close"])
def test_a_tracker_that_fails_is_disabled_and_training_goes_on(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    calls = list[str]()

    class Failing:
        def __init__(self, run: Run, step: int, config: object) -> None:
            self.note("start")

        def note(self, name: str) -> None:
            calls.append(name)
            if name == fails:
                raise ConnectionError("The network is gone.\nMore.")

        def write(self, step: int, values: object) -> None:
            self.note("write")

        def picture(self, step: int, name: str, file: Path) -> None:
            assert file.is_file()
            self.note("picture")

        def close(self, failed: bool) -> None:
            assert not failed
            self.note("close")

    monkeypatch.setitem(TRACKERS, "wandb", Failing)
    recipe = Recipe.load(recipe_file, {"log.trackers": ["wandb"], "train.iterations": 30})
    words = r"Logging to wandb is disabled \(The network is gone\): training goes on, and .*/log\.jsonl has the log"
    with pytest.warns(Notice, match=words) as warned:
        run = fit(recipe, tmp_path / "run", device="cpu")
    assert len(warned) == 1
    assert calls.count(fails) == 1 and calls[-1] == fails
    assert [record.step for record in run.log()] == [10, 20, 30]
    assert not list(run.path.glob("events.*"))  # as TensorBoard is not named


@pytest.mark.slow
def test_a_training_that_ends_by_a_fault_is_told_as_failed(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")

    def broken(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("imletriton.training.session.save_samples", broken)
    with pytest.raises(RuntimeError, match="broken"):
        fit(Recipe.load(recipe_file, {"log.trackers": ["wandb"]}), tmp_path / "run", device="cpu")
    until = time.monotonic() + 30  # wandb's own process writes the end of its file
    while not (told := of_wandb(Run(tmp_path / "run"))[2]) and time.monotonic() < until:
        time.sleep(0.2)
    assert told == [1]


def test_a_run_keeps_its_name_with_trackers_when_it_is_moved_and_gets_one_where_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "my run ü").mkdir()
    run = Run(tmp_path / "my run ü")
    name = tracker_id(run)
    assert name.startswith("my-run---")
    run.path.rename(tmp_path / "moved")
    moved = Run(tmp_path / "moved")
    assert tracker_id(moved) == tracker_id(moved) == name
    moved.tracker_id_file.write_bytes(b"\xff / ")
    assert tracker_id(moved).startswith("moved-") and tracker_id(moved) == tracker_id(moved)
