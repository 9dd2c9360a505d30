"""Calibration: samples that lie too close together are spread, and nothing else changes."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY

from imletriton.commands.fit import fit
from imletriton.data import load_points
from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes
from imletriton.metrics import frechet_distance
from imletriton.metrics.random_features import random_features
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.training import calibration
from imletriton.training.build import build
from imletriton.training.calibration import CONTRASTS, STEP, calibrate
from imletriton.training.trainer import Trainer

CPU = torch.device("cpu")
# Trained for long enough that all random networks agree on its samples, which lie too close together.
TRAINED = {"train.precision": "float32", "train.iterations": 150, "train.learning_rate": 2e-3}
TRAINED |= {"log.checkpoint_every": 75, "log.samples_every": 150}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES", 64)


@pytest.fixture
def trainer(recipe_file: Path) -> Trainer:
    return build(Recipe.load(recipe_file, TRAINED), load_points("faces", 16), CPU)


def distance_to_data(trainer: Trainer) -> float:
    """Measured with other latent codes and other random features than calibration has."""
    with torch.no_grad():
        samples = trainer.ema(latent_codes(0, 512, 8, seed=5)).clamp(-1, 1)
    of = [[random_features(x, seed) for x in (samples, trainer.points)] for seed in range(3)]
    return sum(frechet_distance(ours, theirs) for ours, theirs in of)


def test_samples_are_nearer_to_the_data_after_calibration(trainer: Trainer) -> None:
    for _ in trainer.loop():
        pass
    plain = distance_to_data(trainer)
    state = torch.get_rng_state()
    found = calibrate(trainer)
    assert torch.equal(torch.get_rng_state(), state)  # a strategy may draw random numbers too
    assert found == pytest.approx(float(trainer.ema.spread))
    assert (trainer.ema.contrast > 1).all()  # trained so little, samples have too little contrast
    calibrated = distance_to_data(trainer)
    trainer.ema.spread.fill_(2 * found)
    assert calibrated < min(0.7 * plain, distance_to_data(trainer))


def test_samples_that_lie_too_close_together_are_spread(trainer: Trainer) -> None:
    """The data points are samples of the generator, more different from each other than its own."""
    model = trainer.ema
    with torch.no_grad():
        model.spread.fill_(1.5)
        trainer.points = model(latent_codes(0, 400, 8, seed=9)).clamp(-1, 1)
        model.spread.fill_(1)
    assert calibrate(trainer) == pytest.approx(1.5, abs=1.5 * STEP)
    torch.testing.assert_close(model.contrast, torch.ones_like(model.contrast), atol=0.1, rtol=0)
    assert model.brightness.abs().max() < 0.2


def test_colours_become_those_of_the_data(trainer: Trainer) -> None:
    """The data points are samples of the generator in other colours; one channel has no contrast at all."""
    model = trainer.ema
    contrast, brightness = (torch.tensor(x).view(3, 1, 1) for x in ([1.25, 0.8, 0.0], [-0.1, 0.2, 0.5]))
    with torch.no_grad():
        trainer.points = model(latent_codes(0, 400, 8, seed=9)).mul(0.2) * contrast + brightness
        model.decoder.to_rgb.weight.mul_(0.2)  # type: ignore[union-attr, operator]
        model.decoder.to_rgb.bias.mul_(0.2)  # type: ignore[union-attr, operator]
        calibrate(trainer)
        samples = model(latent_codes(0, 400, 8, seed=4))
    torch.testing.assert_close(model.contrast[:2], contrast[:2], atol=0.06, rtol=0)
    assert float(model.contrast[2]) == CONTRASTS[0]
    for ours, theirs in zip(samples.unbind(1), trainer.points.unbind(1), strict=True):
        torch.testing.assert_close(ours.mean(), theirs.mean(), atol=0.02, rtol=0)


def test_styles_are_stretched_about_their_mean_and_colours_about_grey(trainer: Trainer) -> None:
    model, z = trainer.ema, latent_codes(0, 64, 8, seed=0)
    with torch.no_grad():
        plain, plain_style = model(z), model.mapping(z)
        assert torch.equal(model.style(z), plain_style)
        assert torch.equal(plain, model.decoder(plain_style))
        model.centre.copy_(plain_style.mean(0))
        assert torch.equal(model(z), plain)  # a spread of 1 changes nothing, to the bit
        model.spread.fill_(2.0)
        torch.testing.assert_close(model.style(z) - model.centre, 2 * (plain_style - model.centre))
        model.contrast.copy_(torch.tensor([2.0, 1.0, 0.5]).view(3, 1, 1))
        model.brightness.copy_(torch.tensor([0.0, 0.25, -0.5]).view(3, 1, 1))
        torch.testing.assert_close(model(z), model.decoder(model.style(z)) * model.contrast + model.brightness)
        torch.testing.assert_close(model.mix(z, z, z), model(z))


def test_samples_that_differ_as_the_data_do_are_left_as_they_are(trainer: Trainer) -> None:
    """The data points are samples of the generator themselves."""
    with torch.no_grad():
        trainer.points = trainer.ema(latent_codes(0, 400, 8, seed=9)).clamp(-1, 1)
    assert calibrate(trainer) <= 1 + STEP


def test_one_picture_and_samples_that_are_not_finite_are_left_as_they_are(trainer: Trainer) -> None:
    model = trainer.ema
    with torch.no_grad():
        model.decoder.to_rgb.bias[0] = torch.nan  # type: ignore[union-attr, operator]
    assert calibrate(trainer) == 1
    assert model.contrast.isfinite().all()
    assert model.brightness.isfinite().all()
    trainer.points = trainer.points[:1]
    assert calibrate(trainer) == 1


def test_pictures_of_one_colour_are_calibrated_too(trainer: Trainer) -> None:
    trainer.points = torch.zeros_like(trainer.points)
    calibrate(trainer)
    assert trainer.ema(latent_codes(0, 4, 8, seed=0)).isfinite().all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run without calibration, and the same run with it."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "tiny.toml").write_text(TINY)
    with mock.patch.object(calibration, "SAMPLES", 64):
        plain, calibrated = (
            fit(Recipe.load(folder / "tiny.toml", TRAINED | {"train.calibrate": chosen}), folder / str(chosen), "cpu")
            for chosen in (False, True)
        )
    return plain, calibrated


def test_a_calibrated_run_trains_as_any_other_and_its_models_have_their_spread(runs: tuple[Run, Run]) -> None:
    plain, spread = runs
    assert all(line.spread is None for line in plain.log())
    spreads = {line.step: line.spread for line in spread.log() if line.spread is not None}
    assert sorted(spreads) == [75, 150]
    before, after = (Generator.from_pretrained(run.path) for run in runs)
    assert float(before.spread) == 1
    assert float(after.spread) == pytest.approx(spreads[150])
    assert (after.contrast > before.contrast).all()
    for name, weight in before.named_parameters():
        assert torch.equal(weight, after.get_parameter(name))
    (first, second) = ((run.checkpoints[-1] / "trainer.safetensors").read_bytes() for run in runs)
    assert first == second


def test_a_stopped_run_that_goes_on_ends_with_the_same_model(runs: tuple[Run, Run], tmp_path: Path) -> None:
    """From the checkpoint at which it was stopped, which is a whole run's first one."""
    stopped = Run(tmp_path / "stopped")
    shutil.copytree(runs[1].path, stopped.path)
    shutil.rmtree(stopped.checkpoints[-1])
    fit(None, stopped.path, "cpu", resume=True)
    first, second = ((run.checkpoints[-1] / "model.safetensors").read_bytes() for run in (runs[1], stopped))
    assert first == second


def test_a_run_that_was_trained_without_can_be_calibrated_when_it_goes_on(
    runs: tuple[Run, Run], tmp_path: Path
) -> None:
    shutil.copytree(runs[0].path, tmp_path / "run")
    changed = Recipe.load(tmp_path / "run/recipe.toml", {"train.calibrate": True, "train.iterations": 155})
    fit(changed, tmp_path / "run", "cpu", resume=True)
    assert (Generator.from_pretrained(tmp_path / "run").contrast > 1).all()


def test_points_in_the_plane_are_not_calibrated(recipe_file: Path) -> None:
    changes = {
        "data.source": "toy2d",
        "generator.decoder": "mlp",
        "distance.kind": "euclidean",
        "train.calibrate": True,
    }
    with pytest.raises(InputError, match=r"train\.calibrate is for pictures, not for data\.source 'toy2d'"):
        Recipe.load(recipe_file, changes)
