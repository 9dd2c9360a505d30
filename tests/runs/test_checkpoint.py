import json
import shutil
from pathlib import Path

import pytest
import torch

from imletriton.errors import Fault, InputError
from imletriton.generator import Generator
from imletriton.runs.checkpoint import best_checkpoint, load_checkpoint, load_state, note_fid, save_checkpoint
from imletriton.runs.run import checkpoints_of


@pytest.fixture
def generator() -> Generator:
    return Generator(latent_dim=3, mapping_layers=1, width=4, blocks="4x1")


def save(run: Path, generator: Generator, step: int, loss: float | None = None, keep: int = 2) -> Path:
    return save_checkpoint(run, step, generator, {"a.b": torch.arange(3)}, {"step": step, "loss": loss}, keep)


def test_a_checkpoint_is_a_model_and_what_resuming_needs(tmp_path: Path, generator: Generator) -> None:
    folder = save(tmp_path, generator, 500)
    assert folder == tmp_path / "checkpoints" / "000500"
    names = {"README.md", "config.json", "model.safetensors", "trainer.json", "trainer.safetensors"}
    assert {p.name for p in folder.iterdir()} == names
    weights, tensors, state = load_checkpoint(folder)
    assert weights.keys() == generator.state_dict().keys()
    assert tensors["a.b"].tolist() == [0, 1, 2]
    assert state == {"step": 500, "loss": None}


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
    assert load_state(folder) == {"step": 5, "loss": 0.2, "fid": 7.0}


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


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "trainer.json"])
def test_damage_is_named(tmp_path: Path, generator: Generator, name: str) -> None:
    folder = save(tmp_path, generator, 1)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"000001 is damaged .* remove it"):
        load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(folder)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, generator, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imletriton.runs.checkpoint.save_file", full)
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
