"""What training tells of the samples that a user would get, which checkpoint it keeps for that, and when it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reporters import interrupt

from imletriton.commands.fit import fit
from imletriton.data import held_out, load_points
from imletriton.errors import Interrupted
from imletriton.generator import Generator, latent_codes
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import best_checkpoint, load_state
from imletriton.runs.run import Run
from imletriton.runs.schema import LogRecord
from imletriton.training.build import build
from imletriton.training.reporter import Reporter
from imletriton.training.watch import SAMPLES, STREAM, Watch

CPU = torch.device("cpu")
KEYS = ("samples_to_data", "held_out_to_samples")


def distances(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    return [line for line in lines if "samples_to_data" in line]


def test_distances_are_those_of_the_averaged_weights_in_search_features(recipe_file: Path, tmp_path: Path) -> None:
    changes = {"data.holdout": 0.1, "log.measure_every": 20, "train.iterations": 20, "train.precision": "float32"}
    recipe = Recipe.load(recipe_file, changes)
    run = fit(recipe, tmp_path / "run", "cpu")
    (line,) = distances(run)
    trainer = build(recipe, load_points(**recipe.data.model_dump()), CPU)
    model = Generator.from_pretrained(run.path)
    with torch.no_grad():
        samples = trainer.distance.features(model(latent_codes(0, SAMPLES, 8, seed=0, stream=STREAM))).double()
    held = trainer.distance.features(held_out(load_points("faces", 16), 0.1)).double()
    assert len(held) == 10
    expected = torch.cdist(samples, trainer.features.double()).min(1).values.mean()
    assert line["samples_to_data"] == pytest.approx(float(expected), rel=1e-4)
    expected = torch.cdist(held, samples).min(1).values.mean()
    assert line["held_out_to_samples"] == pytest.approx(float(expected), rel=1e-4)
    assert {key: load_state(run.checkpoints[-1])[key] for key in KEYS} == {key: line[key] for key in KEYS}


def test_measuring_changes_nothing_that_is_trained(recipe_file: Path, tmp_path: Path) -> None:
    runs = []
    for every in (0, 7):
        recipe = Recipe.load(recipe_file, {"log.measure_every": every, "train.iterations": 20})
        runs.append(fit(recipe, tmp_path / str(every), "cpu"))
    assert [len(distances(run)) for run in runs] == [0, 2]
    for name in ("model.safetensors", "trainer.safetensors"):
        first, second = ((run.checkpoints[-1] / name).read_bytes() for run in runs)
        assert first == second


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.told: list[LogRecord] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def distances(self, record: LogRecord) -> None:
        self.told.append(record)


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Let the distances at some steps be these."""
    measure = Watch.measure

    def measured(watch: Watch) -> dict[str, float]:
        value = values[watch.trainer.step]
        monkeypatch.setattr("imletriton.training.watch._mean_distance", lambda queries, pool: value)
        return measure(watch)

    monkeypatch.setattr(Watch, "measure", measured)


# The best is at step 20; from there on, 0.4999 is no improvement worth the name.
CURVE = {10: 0.8, 20: 0.5, 30: 0.6, 40: 0.4999, 50: 0.7, 60: 0.3}


@pytest.mark.parametrize("stops", [None, 24, 35])
def test_a_run_ends_when_it_no_longer_improves_and_resuming_goes_by_the_same_count(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: int | None
) -> None:
    scripted(monkeypatch, CURVE)
    changes = {"train.patience": 3, "log.measure_every": 10, "train.iterations": 100, "log.keep": 1}
    recipe, told, path = Recipe.load(recipe_file, changes), Notes(), tmp_path / "run"
    if stops:
        with pytest.raises(Interrupted):
            fit(recipe, path, "cpu", reporter=interrupt(stops))
    run = fit(recipe, path, "cpu", reporter=told, resume=stops is not None)
    assert [record.step for record in told.told] == [step for step in (10, 20, 30, 40, 50) if step > (stops or 0)]
    words = (
        "the distance from samples to the data has not improved in the last 3 measurements; it was smallest at step 20"
    )
    assert words in told.notes[-1]
    assert [line["step"] for line in distances(run)] == [10, 20, 30, 40, 50]
    assert run.checkpoints[-1].name == "000050"
    assert (run.samples / "000050.png").exists()
    # Resumed, it is still at its end; without patience, it goes on.
    again = Notes()
    fit(None, path, "cpu", reporter=again, resume=True)
    assert again.notes[-1] == told.notes[-1]
    assert len(distances(run)) == 5
    on = Recipe.load(run.recipe_file, {"train.patience": 0, "train.iterations": 60})
    fit(on, path, "cpu", resume=True)
    assert run.checkpoints[-1].name == "000060"


def test_the_best_checkpoint_by_distance_is_kept(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, CURVE | {60: 0.9})
    recipe = Recipe.load(recipe_file, {"log.measure_every": 10, "log.keep": 1})
    run = fit(recipe, tmp_path / "run", "cpu")
    assert [folder.name for folder in run.checkpoints] == ["000040", "000060"]
    assert best_checkpoint(run.path).name == "000040"


def test_held_out_pictures_decide_where_there_are_any(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(recipe_file, {"data.holdout": 0.1})
    trainer = build(recipe, load_points(**recipe.data.model_dump()), CPU)
    watch = Watch(trainer, held_out(load_points("faces", 16), 0.1))
    found = {90: 0.5, SAMPLES: 0.9}  # by what is searched from: data are nearer in every measurement, held-out ones not
    monkeypatch.setattr("imletriton.training.watch._mean_distance", lambda q, pool: found[len(pool)])
    for count in range(3):
        found[90] /= 2
        watch.measure()
        assert watch.stale == count
    assert watch.is_over(2)
    assert not watch.is_over(0)
    assert "held-out pictures to samples" in watch.verdict


def test_samples_that_are_not_finite_are_left_out(recipe: Recipe) -> None:
    trainer = build(recipe, load_points("faces", 16), CPU)
    watch = Watch(trainer)
    assert watch.measure().keys() == {"samples_to_data"}
    for weight in trainer.averages:
        weight.fill_(torch.nan)
    assert watch.measure() == {}
    assert watch.stale == 0
