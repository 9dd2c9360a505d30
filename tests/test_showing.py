from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imletriton.errors import InputError
from imletriton.fitting import fit
from imletriton.recipe import Recipe
from imletriton.run import Run
from imletriton.showing import FIGURES, show

TOY2D = Path(__file__).parents[1] / "recipes/toy2d.toml"


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {"selection.strategy": "adaptive-rejection", "selection.epsilon": 0.15, "train.iterations": 60}
    overrides |= {"log.every": 10, "log.checkpoint_every": 20, "log.samples_every": 60}
    return fit(Recipe.load(TOY2D, overrides), tmp_path_factory.mktemp("toy") / "run", device="cpu")


def colours(path: Path) -> int:
    return len(np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0))


def test_a_run_in_the_plane_shows_everything(toy_run: Run) -> None:
    written = show(toy_run.path)
    assert written == {name: toy_run.path / "figures" / f"{name}.png" for name in FIGURES}
    assert all(colours(path) > 20 for path in written.values())
    assert Image.open(written["samples"]).width == 3 * Image.open(written["samples"]).height  # a panel a checkpoint


def test_a_run_of_pictures_shows_what_suits_it(recipe: Recipe, tmp_path: Path) -> None:
    run = fit(recipe, tmp_path / "run", device="cpu")
    written = show(run.path)
    assert list(written) == ["samples", "distances"]
    sheet = np.asarray(Image.open(written["samples"]))
    newest = np.asarray(Image.open(run.samples / "000060.png"))
    assert np.array_equal(sheet[-len(newest) :], newest)
    assert (sheet[: -len(newest)] < 128).any()  # its title
    with pytest.raises(InputError, match="no thresholds to show: the strategy 'vanilla' has none"):
        show(run.path, "thresholds")
    with pytest.raises(InputError, match="no latents to show: its latent codes have 8 dimensions"):
        show(run.path, "latents")


def test_a_picture_that_cannot_be_written_is_told(toy_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a.png cannot be written .*choose another file with --out"):
        show(toy_run.path, "latents", tmp_path / "file" / "a.png")
