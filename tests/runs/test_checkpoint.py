import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imletriton.errors import Fault, InputError
from imletriton.generator import Generator
from imletriton.runs.checkpoint import (
    best_checkpoint,
    load_checkpoint,
    load_state,
    newest_whole,
    note_fid,
    save_checkpoint,
    set_aside,
)
from imletriton.runs.run import checkpoints_of


@pytest.fixture
def generator() -> Generator:
    return Generator(latent_dim=3, mapping_layers=1, width=4, blocks="4x1")


def save(run: Path, generator: Generator, step: int, loss: float | None = None, keep: int = 2) -> Path:
    return save_checkpoint(
        run, step, generator, {"a.b": torch.arange(3)}, {"step": step, "loss": loss, "data": "d"}, keep
    )


def test_a_checkpoint_is_a_model_and_what_resuming_needs(tmp_path: Path, generator: Generator) -> None:
    folder = save(tmp_path, generator, 500)
    assert folder == tmp_path / "checkpoints" / "000500"
    names = {"README.md", "config.json", "model.safetensors", "trainer.json", "trainer.safetensors"}
    assert {p.name for p in folder.iterdir()} == names
    weights, tensors, state = load_checkpoint(folder)
    assert weights.keys() == generator.state_dict().keys()
    assert tensors["a.b"].tolist() == [0, 1, 2]
    sums = state.pop("sha256")
    assert sums.keys() == names - {"README.md"}
    for name in sums.keys() - {"trainer.json"}:
        assert sums[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert state == {"step": 500, "loss": None, "data": "d"}


def test_the_newest_is_found_while_training_replaces_it(tmp_path: Path, generator: Generator) -> None:
    checked = [save(tmp_path, generator, 1, keep=1)]

    def check(folder: Path) -> None:
        if folder == checked[0]:
            checked.append(save(tmp_path, generator, 2, loss=0.1, keep=1))  # which removes the first
        load_checkpoint(folder)

    assert newest_whole(tmp_path, check) == (tmp_path / "checkpoints/000002", {})


def test_the_newest_and_the_best_are_kept(tmp_path: Path, generator: Generator) -> None:
    for step, loss in enumerate([None, 0.5, 0.2, 0.4, 0.3, 0.25], start=1):
        save(tmp_path, generator, step, loss)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["000003", "000005", "000006"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_best_is_of_least_fid_where_that_was_measured(tmp_path: Path, generator: Generator) -> None:
    for step, fid in enumerate([9.0, 3.0, None, 5.0, 7.0], start=1):
        folder = save(tmp_path, generator, step, loss=1 / step, keep=1)
        if fid is not None:
            note_fid(folder, fid)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["000002", "000005"]
    assert best_checkpoint(tmp_path).name == "000002"
    state = load_state(folder)
    assert (state["step"], state["loss"], state["fid"]) == (5, 0.2, 7.0)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, generator: Generator) -> None:
    (tmp_path / "checkpoints" / ".000010").mkdir(parents=True)
    save(tmp_path, generator, 20)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000020"]


def test_other_files_and_old_damage_do_not_stop_a_save(tmp_path: Path, generator: Generator) -> None:
    (save(tmp_path, generator, 1, 0.1) / "trainer.json").write_text("{")
    (tmp_path / "checkpoints" / ".DS_Store").write_text("left behind by another system")
    for step in (2, 3, 4):
        save(tmp_path, generator, step, 0.5)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["000003", "000004"]
    assert (tmp_path / "checkpoints" / ".DS_Store").exists()


def in_a_folders_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 2),
    "extended": lambda file: file.write_bytes(file.read_bytes() + b"}"),
    "flipped": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "not UTF-8": lambda file: file.write_bytes(b"\xff\xfe" + file.read_bytes()),
    "of another checkpoint": lambda file: shutil.copy(file.parents[1] / "000001" / file.name, file),
    "null": lambda file: file.write_text("null"),
    "nested": lambda file: file.write_text("[" * 10**5),
    "in a folder's place": in_a_folders_place,
    "a pipe": a_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "trainer.safetensors", "trainer.json"])
def test_damage_is_told_and_passed_over(tmp_path: Path, generator: Generator, name: str, damage: str) -> None:
    other = Generator(latent_dim=3, mapping_layers=1, width=5, blocks="4x1")
    save_checkpoint(tmp_path, 1, other, {"a.b": torch.arange(2)}, {"step": 1, "data": "d"}, keep=3)
    before = save(tmp_path, generator, 2, keep=3)
    folder = save(tmp_path, generator, 3, keep=3)
    assert newest_whole(tmp_path) == (folder, {})
    DAMAGES[damage](folder / name)
    with pytest.raises(InputError) as told:
        load_checkpoint(folder)
    assert re.fullmatch(rf"{folder}/{name} is [^\n]+: use another checkpoint\.", str(told.value))
    newest, damaged = newest_whole(tmp_path)
    assert newest == before
    assert list(damaged) == [folder]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step": "3"}, "step: Input should be a valid integer"),
        ({"step": True}, "step: Input should be a valid integer"),
        ({"step": 4}, "its values do not match its SHA-256 sum"),
        ({"step": -3}, "step: Input should be greater than or equal to 0"),
        ({"rounds": 10**20}, "rounds: Input should be less than"),
        ({"rounds": 5}, "(step, rounds, draws and relaxed do not agree"),
        ({"rounds": 1, "draws": 2}, "step, rounds, draws and relaxed do not agree"),
        ({"loss": "low"}, "loss: Input should be a valid number"),
        ({"figures": [1]}, "figures: Input should be a valid dictionary"),
        ({"figures": {"random": "far"}}, "figures.random.int: Input should be a valid integer"),
        ({"environment": None}, "environment: Input should be a valid dictionary"),
        ({"sha256": None}, "sha256: Input should be a valid dictionary"),
        ({"sha256": {"trainer.json": ""}}, "its values do not match its SHA-256 sum"),
        ({"shb256": {}}, "shb256: Extra inputs are not permitted"),
    ],
)
def test_a_state_with_wrong_values_is_told(
    tmp_path: Path, generator: Generator, changed: dict[str, object], words: str
) -> None:
    folder = save(tmp_path, generator, 3)
    (folder / "trainer.json").write_text(json.dumps(load_state(folder) | changed))
    with pytest.raises(InputError) as told:
        load_checkpoint(folder)
    assert words in str(told.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_told(tmp_path: Path, generator: Generator, value: float) -> None:
    next(generator.parameters()).data.flatten()[0] = value
    folder = save(tmp_path, generator, 3)
    with pytest.raises(InputError, match=r"model\.safetensors holds weights that are NaN or infinite"):
        load_checkpoint(folder)


def test_a_run_without_any_whole_checkpoint_is_told(tmp_path: Path, generator: Generator) -> None:
    assert newest_whole(tmp_path) == (None, {})
    for step in (1, 2):
        (save(tmp_path, generator, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"000002/model\.safetensors is .* has no other checkpoint that is whole: train"
    ):
        newest_whole(tmp_path)


def test_a_model_without_the_trainers_files_is_whole_but_not_to_be_resumed(
    tmp_path: Path, generator: Generator
) -> None:
    before, folder = save(tmp_path, generator, 1), save(tmp_path, generator, 2)
    for name in ("trainer.json", "trainer.safetensors"):
        (folder / name).unlink()
    assert newest_whole(tmp_path) == (folder, {})
    newest, damaged = newest_whole(tmp_path, load_checkpoint)
    assert (newest, list(damaged)) == (before, [folder])


def test_what_lies_in_a_checkpoints_place_is_damaged_and_pruned(tmp_path: Path, generator: Generator) -> None:
    first = save(tmp_path, generator, 1)
    (tmp_path / "checkpoints" / "000002").write_text("no folder")
    newest, damaged = newest_whole(tmp_path)
    assert (newest, list(damaged)) == (first, [tmp_path / "checkpoints" / "000002"])
    for step in (3, 4):
        save(tmp_path, generator, step)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["000003", "000004"]


def test_a_checkpoint_that_is_set_aside_is_kept_and_no_longer_counts(tmp_path: Path, generator: Generator) -> None:
    for name in ("000001.damaged", "000001.damaged1"):
        assert set_aside(save(tmp_path, generator, 1)) == tmp_path / "checkpoints" / name
    assert checkpoints_of(tmp_path) == []
    for step in (2, 3, 4):
        save(tmp_path, generator, step, keep=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, generator, 1)

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(Fault, match=r"000002 could not be written .*No space left"):
        save(tmp_path, generator, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_nothing_is_pickled(tmp_path: Path, generator: Generator) -> None:
    folder = save(tmp_path, generator, 1)
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix in (".safetensors", ".md")
    shutil.rmtree(folder)
