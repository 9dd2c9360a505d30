import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from PIL import Image

from imletriton.commands.gen import generate
from imletriton.data import load_points
from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes
from imletriton.plotting.grids import save_picture
from imletriton.runs.opening import open_source
from imletriton.runs.run import Run
from imletriton.share.explore.explorer import Explorer, Picture
from imletriton.share.origin import KEYWORD, Origin, read_origin
from imletriton.share.variations import neighbourhood


@pytest.fixture(scope="module")
def explorer(trained_run: Run) -> Explorer:
    return Explorer(open_source(trained_run), "cpu")


def as_file(image: torch.Tensor, file: Path) -> Path:
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file)
    return file


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.8, 1.0])
def test_neighbours_stay_normal_and_as_far_as_asked(distance: float) -> None:
    codes = latent_codes(0, 1, 4096, seed=0)
    moved = neighbourhood(codes, distance, latent_codes(0, 50, 4096, seed=1))
    assert moved.shape == (50, 1, 4096)
    assert float(moved.std()) == pytest.approx(1, abs=0.02)
    likeness = torch.nn.functional.cosine_similarity(moved[:, 0], codes)
    assert float(likeness.mean()) == pytest.approx((1 - distance**2) ** 0.5, abs=0.02)


def test_all_codes_of_a_picture_move_together() -> None:
    codes = latent_codes(0, 1, 8, seed=0).expand(3, -1)
    moved = neighbourhood(codes, 0.5, latent_codes(0, 4, 8, seed=1))
    assert torch.equal(moved, moved[:, :1].expand(-1, 3, -1))


def test_samples_are_those_that_gen_writes(explorer: Explorer, trained_run: Run, tmp_path: Path) -> None:
    folder = generate(trained_run, 3, seed=5, out=tmp_path / "out").folder
    for k, picture in enumerate(explorer.samples(3, 5)):
        assert (picture.seed, picture.sample, picture.made) == (5, k, f"sample {k} of seed 5")
        with Image.open(folder / f"{k:06d}.png") as written:
            assert np.array_equal(np.asarray(written), picture.image.permute(1, 2, 0).numpy())


def test_what_is_between_two_pictures_begins_and_ends_with_them(explorer: Explorer) -> None:
    one, other = explorer.samples(2, 0)
    mixes = explorer.mixes(one, other)
    assert len(mixes) == 8
    assert (mixes[0].made, mixes[7].made) == (one.made, other.made)
    assert len({picture.image.numpy().tobytes() for picture in mixes}) == 8
    assert mixes[5].made == "sample 0 of seed 0 with coarse, fine of sample 1 of seed 0"
    assert torch.equal(mixes[5].codes, torch.cat([other.codes, one.codes, other.codes]))
    for start, end in ((one, other), (mixes[1], other), (one, mixes[4])):
        for t, expected in ((0.0, start), (1.0, end)):
            image = explorer.between(start, end, t).image
            assert (image.int() - expected.image.int()).abs().max() <= 1
    halves = explorer.between(one, other, 0.5)
    assert not torch.equal(halves.image, one.image)


def test_the_nearest_training_picture_is_found(explorer: Explorer) -> None:
    points = load_points("faces", 16)
    found = explorer.nearest(Picture(points[17], torch.zeros(1, 8), "a copy"))
    assert found.number == 17
    assert found.distance == pytest.approx(0, abs=1e-6)
    assert found.spacing > 0
    assert torch.equal(found.image, points[17])


def test_a_model_without_a_run_has_no_training_pictures(explorer: Explorer, trained_run: Run, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained_run.checkpoints[-1] / name, lone)
    alone = Explorer(open_source(lone), "cpu")
    (sample,) = alone.samples(1, 0)
    assert torch.equal(sample.image, explorer.samples(1, 0)[0].image)
    with pytest.raises(InputError, match="lone has no training pictures to compare with: it comes without its recipe"):
        alone.nearest(sample)


def test_training_pictures_that_are_gone_are_told(own_run: Run, tmp_path: Path) -> None:
    recipe = own_run.recipe_file
    recipe.write_text(recipe.read_text().replace('source = "faces"', f'source = "{tmp_path / "gone"}"'))
    explorer = Explorer(open_source(own_run), "cpu")
    with pytest.raises(InputError, match="gone' is not a folder"):
        explorer.nearest(explorer.samples(1, 0)[0])


def test_a_photo_is_projected_and_a_saved_picture_is_recognised(explorer: Explorer, tmp_path: Path) -> None:
    picture = explorer.samples(3, 0)[2]
    done: list[float] = []
    found = explorer.project(as_file(picture.image, tmp_path / "photo.png"), done.append)
    assert found.made == "a projected photo"
    away = (found.image.float() - picture.image.float()).abs().mean()
    others = [(p.image.float() - picture.image.float()).abs().mean() for p in explorer.samples(40, 9)]
    assert away < min(others)
    assert done[-1] == 1
    again = explorer.project(explorer.save(picture, tmp_path))
    assert torch.equal(again.codes, picture.codes)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="This photo cannot be read"):
        explorer.project(tmp_path / "text.png")
    Image.new("CMYK", (40, 23)).save(tmp_path / "photo.jpg")  # other modes are read as in training
    assert explorer.project(tmp_path / "photo.jpg").codes.shape == (1, 8)


def test_favourites_keep_what_they_were_made_from(explorer: Explorer, tmp_path: Path) -> None:
    one, other = explorer.samples(2, 0)
    for picture in (one, explorer.mixes(one, other)[1], explorer.between(one, other, 0.5)):
        file = explorer.save(picture, tmp_path / "kept")
        assert explorer.save(picture, tmp_path / "kept") == file
        kept = explorer.load(file)
        assert torch.equal(kept.codes, picture.codes)
        assert (kept.image.int() - picture.image.int()).abs().max() <= 1
        assert (kept.made, kept.seed, kept.sample) == (picture.made, picture.seed, picture.sample)
    (tmp_path / "kept" / "other.png").write_text("no picture")
    as_file(one.image, tmp_path / "kept" / "plain.png")
    assert len(explorer.saved(tmp_path / "kept")) == 3
    assert explorer.saved(tmp_path / "none") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        explorer.save(one, tmp_path / "file" / "below")


def test_gen_makes_more_like_a_picture(
    explorer: Explorer,
    own_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = explorer.samples(5, 3)[4]
    file = explorer.save(picture, tmp_path)
    arguments = ["gen", str(own_run.path), "--like", str(file), "--device", "cpu", "--n"]
    assert run_cli(monkeypatch, *arguments, "3", "--distance", "0.2") == 0
    assert run_cli(monkeypatch, *arguments, "20", "--distance", "0.2") == 0
    assert "holds 20 samples: 17 made" in capsys.readouterr().out
    folder = own_run.path / "gen" / f"000020-like-{file.stem}-0.2-seed-0"
    expected = explorer.neighbours(picture, 20, 0.2, 0)
    for k in range(20):
        with Image.open(folder / f"{k:06d}.png") as written:
            assert np.array_equal(np.asarray(written), expected[k].image.permute(1, 2, 0).numpy())
    assert torch.equal(explorer.load(folder / "000019.png").codes, expected[19].codes)
    assert read_origin(folder / "000019.png").made == "near sample 4 of seed 3"
    samples = generate(own_run, 5, seed=3, out=tmp_path / "samples").folder  # whose metadata name seed and number only
    assert torch.equal(explorer.load(samples / "000004.png").codes, picture.codes)
    generate(own_run, 2, out=tmp_path / "again", like=samples / "000004.png", distance=0.2)
    assert (tmp_path / "again" / "000001.png").read_bytes() != (samples / "000001.png").read_bytes()


def test_pictures_of_other_models_and_damaged_ones_are_told(
    explorer: Explorer, trained_run: Run, tmp_path: Path
) -> None:
    other = Generator(latent_dim=8, mapping_layers=1, width=8, blocks="4x1,8m4,16m8")
    other.save_pretrained(tmp_path / "other")
    (picture,) = explorer.samples(1, 0)
    file = explorer.save(picture, tmp_path)
    with pytest.raises(InputError, match="was made by tiny-001, step 20, not by other: name the model that made it"):
        generate(tmp_path / "other", 1, like=file)
    assert not (tmp_path / "other" / "gen").exists()
    origin = Origin.of(explorer.maker, picture.codes, "x")
    for changes, words in (
        ({"latents": "AAAA"}, "is damaged"),
        ({"latents": "?"}, "is damaged"),
        ({"latents": Origin.of(explorer.maker, picture.codes * torch.nan, "x").latents}, "is damaged"),
        ({"latents": None}, "neither a sample of a seed nor a latent code"),
        ({"seed": -1}, "The metadata of .*damaged.png is damaged .*: name a picture as"),
    ):
        damaged = tmp_path / "damaged.png"
        text = origin.model_copy(update=changes).model_dump_json(exclude_none=True)
        save_picture(damaged, Image.new("RGB", (16, 16)), {KEYWORD: text})
        with pytest.raises(InputError, match=words):
            generate(trained_run, 1, like=damaged)
    for distance in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="`distance` must be more than 0"):
            generate(trained_run, 1, like=file, distance=distance)


def test_points_are_not_explored(tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="points, not pictures"):
        Explorer(open_source(tmp_path), "cpu")
