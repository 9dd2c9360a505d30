from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imletriton.commands.fit import fit
from imletriton.commands.show import VIEWS, show
from imletriton.commands.status import status
from imletriton.data import load_points
from imletriton.distance import Pixels, as_float
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.share.views import Shown

TOY2D = Path(__file__).parents[2] / "recipes/toy2d.toml"


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {"selection.strategy": "adaptive-rejection", "selection.epsilon": 0.15, "train.iterations": 60}
    overrides |= {"log.every": 10, "log.checkpoint_every": 20, "log.samples_every": 60}
    return fit(Recipe.load(TOY2D, overrides), tmp_path_factory.mktemp("toy") / "run", device="cpu")


def colours(path: Path) -> int:
    return len(np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0))


def test_a_run_in_the_plane_shows_everything(toy_run: Run) -> None:
    written = show(toy_run.path)
    drawn = [name for name in VIEWS if name not in ("nearest", "interpolate")]  # which are of pictures
    assert written == {name: toy_run.path / "figures" / f"{name}.png" for name in drawn}
    assert all(colours(path) > 20 for path in written.values())
    assert status(toy_run.path).state == "done"
    assert Image.open(written["samples"]).width == 3 * Image.open(written["samples"]).height  # a panel a checkpoint


def test_every_view_can_be_drawn() -> None:
    assert {f"draw_{view}" for view in VIEWS} == {name for name in vars(Shown) if name.startswith("draw_")}


def test_a_run_of_pictures_shows_what_suits_it(own_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.share.views.RECALLED", 50)
    run = own_run
    written = show(run.path)
    assert list(written) == ["samples", "nearest", "interpolate", "curves", "distances"]
    assert all(colours(path) > 20 for path in written.values())
    sheet = np.asarray(Image.open(written["samples"]))
    newest = np.asarray(Image.open(run.samples / "000020.png"))
    assert np.array_equal(sheet[-len(newest) :], newest)
    assert (sheet[: -len(newest)] < 128).any()  # its title
    with pytest.raises(InputError, match="no thresholds to show: the strategy 'vanilla' does not use thresholds"):
        show(run.path, "thresholds")
    with pytest.raises(InputError, match="no latents to show: its latent codes have 8 dimensions"):
        show(run.path, "latents")


def test_the_seed_and_the_number_of_samples_can_be_chosen(trained_run: Run, tmp_path: Path) -> None:
    expected = Generator.from_pretrained(trained_run.path).sample(8, seed=3)
    drawn = show(trained_run, "samples", tmp_path / "a.png", n=8, seed=3, device="cpu")["samples"]
    sheet = np.asarray(Image.open(drawn))[-8 * 16 :: 8, ::8]  # one row, eight times as large
    assert np.array_equal(sheet, expected.permute(2, 0, 3, 1).flatten(1, 2).numpy())
    one, other = (show(trained_run, "interpolate", tmp_path / f"{k}.png", seed=k)["interpolate"] for k in (0, 1))
    assert not np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    with pytest.raises(InputError, match="`n` is for the views samples and nearest"):
        show(trained_run, "curves", n=8)


def test_visual_recall_puts_each_picture_beside_its_nearest_sample(own_run: Run) -> None:
    run = own_run
    exact = Recipe.load(run.recipe_file, {"distance.projection_dim": 2000})  # as features have 768 dimensions
    run.recipe_file.write_text(exact.to_toml())
    whole = np.asarray(Image.open(show(run.path, "nearest", n=50)["nearest"]))
    sheet = whole[-25 * 16 * 7 :]  # 25 rows, 7 times as large
    points, samples = load_points("faces", 16), Generator.from_pretrained(run.path).sample(50)
    pixels = Pixels()
    pairs = torch.stack([pixels.loss(as_float(samples), as_float(x).expand(50, -1, -1, -1)) for x in points])
    for k in (0, 3, 4, 99):
        row, column = k // 4 * 16 * 7, k % 4 * 34 * 7
        cell = sheet[row : row + 16 * 7 : 7, column : column + 34 * 7 : 7]
        assert np.array_equal(cell[:, :16], points[k].permute(1, 2, 0).numpy())
        shown = torch.from_numpy(cell[:, 16:32].copy()).permute(2, 0, 1)
        assert pairs[k].argmin() == (samples == shown).flatten(1).all(1).nonzero()[0, 0]
    closest = pairs.amin(0).argsort()[:8]  # the closest copies, below the first title, nearest first
    for k, sample in enumerate(closest):
        top, left = 40 + k // 4 * 16 * 7, k % 4 * 34 * 7
        cell = whole[top : top + 16 * 7 : 7, left : left + 32 * 7 : 7]
        both = torch.cat([points[pairs[:, sample].argmin()], samples[sample]], 2).permute(1, 2, 0)
        assert np.array_equal(cell, both.numpy())


def test_a_picture_that_cannot_be_written_is_told(toy_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a.png cannot be written .*choose another file with `out`"):
        show(toy_run.path, "latents", tmp_path / "file" / "a.png")
