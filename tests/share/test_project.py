import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from PIL import Image
from safetensors.torch import load_file, save_file

from imletriton.commands.gen import generate
from imletriton.commands.show import show
from imletriton.distance import Bands, as_float
from imletriton.errors import InputError, Notice
from imletriton.generator import Generator
from imletriton.metrics.backtracking import backtrack
from imletriton.share.project import project
from imletriton.share.views import STAGES

SMALL = {"latent_dim": 4, "mapping_layers": 1, "width": 8, "blocks": "4x1,8m4", "bottleneck": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint, without a recipe."""
    torch.manual_seed(0)
    Generator(**SMALL).save_pretrained(tmp_path / "run" / "checkpoints" / "000010")
    return tmp_path / "run"


def photo(path: Path, sample: torch.Tensor, size: int = 40) -> Path:
    """A picture that the model makes, as a photo of another size."""
    picture = Image.fromarray(sample.permute(1, 2, 0).numpy())
    picture.resize((size, size), Image.Resampling.NEAREST).save(path)
    return path


def half(picture: Path, side: int = 1) -> np.ndarray:
    """The photo (0) or the reconstruction (1) in a picture that `project` writes, of 8x8 pixels again."""
    sheet = np.asarray(Image.open(picture)).astype(int)
    zoom = 1024 // 16
    return sheet[-8 * zoom :: zoom, 8 * side * zoom :: zoom][:, :8]


def test_a_sample_of_the_model_is_found_again(run: Path, tmp_path: Path) -> None:
    model, told = Generator.from_pretrained(run), list[int]()
    images = model.sample(3, seed=7)
    photos = [photo(tmp_path / f"{k}.png", image, 8) for k, image in enumerate(images)]
    found = project(photos, run, device="cpu", steps=60, progress=lambda name, done, total: told.append(done))
    random = Bands().loss(as_float(model.sample(3, seed=8)), images)
    assert max(one.distance for one in found) < 0.02 * random.mean()
    for one, image in zip(found, images, strict=True):
        latents = load_file(one.latents)["latents"]
        assert latents.norm() <= 2 + 4**0.5 + 1e-5
        made = model.draw(latents)
        assert one.distance == pytest.approx(float(Bands().loss(as_float(made), image[None])), rel=1e-3, abs=1e-6)
        assert np.array_equal(made[0].permute(1, 2, 0).numpy(), half(one.picture))
    assert told[-1] == 3 * 60
    assert told == sorted(told)


def test_what_is_found_depends_on_the_photo_and_the_seed_alone(run: Path, tmp_path: Path) -> None:
    photos = [photo(tmp_path / f"{k}.png", image) for k, image in enumerate(Generator.from_pretrained(run).sample(2))]
    few = {"device": "cpu", "starts": 4, "steps": 3}
    _, second = project(photos, run, **few)
    (alone,) = project(photos[1:], run, tmp_path / "alone", **few)
    (other,) = project(photos[1:], run, tmp_path / "other", **few, seed=1)
    assert second.distance == alone.distance != other.distance


def test_many_starts_find_more_than_one(run: Path) -> None:
    model = Generator.from_pretrained(run)
    images = model.sample(6, seed=5)
    few, many = (backtrack(model, images, Bands(), starts=k, steps=20).distance for k in (1, 64))
    assert (many <= few).all()
    assert many.mean() < 0.5 * few.mean()


def test_a_photo_becomes_a_latent_that_other_commands_draw(run: Path, tmp_path: Path) -> None:
    samples = Generator.from_pretrained(run).sample(2, seed=3)
    photos = [photo(tmp_path / f"{k}.png", sample) for k, sample in enumerate(samples)]
    told: list[tuple[int, int]] = []
    found = project(photos, run, device="cpu", steps=30, progress=lambda *words: told.append(words))
    assert [p.photo for p in found] == photos
    assert [p.latents for p in found] == [run / "projected" / f"{k}.safetensors" for k in range(2)]
    assert told[-1] == ("projecting", 60, 60)
    for one in found:
        made = generate(run, 1, latents=one.latents)
        assert made.folder == run / "gen" / f"000010-from-{one.photo.stem}"
        assert np.array_equal(np.asarray(Image.open(made.folder / "000000.png")), half(one.picture))
    a, b = (p.latents for p in found)
    sheet = np.asarray(Image.open(show(run, "interpolate", tmp_path / "i.png", between=(a, b))["interpolate"]))
    zoom = sheet.shape[1] // (8 * STAGES)
    row = sheet[-8 * zoom :: zoom, : 8 * STAGES * zoom : zoom].astype(int)
    assert np.abs(row[:, :8] - half(found[0].picture)).max() <= 1
    assert np.abs(row[:, -8:] - half(found[1].picture)).max() <= 1


def test_photos_of_any_kind_are_read_as_in_training(run: Path, tmp_path: Path) -> None:
    (sample,) = Generator.from_pretrained(run).sample(1)
    upright = photo(tmp_path / "upright.png", sample)
    with Image.open(upright) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter to the right
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        picture.convert("RGBA").save(tmp_path / "rgba.png")
        picture.convert("L").save(tmp_path / "grey.png")
        wide = Image.new("RGB", (90, 40))
        wide.paste(picture, (25, 0))
        wide.save(tmp_path / "wide.png")
    names = ["upright", "turned", "rgba", "wide", "grey"]
    found = project([tmp_path / f"{name}.png" for name in names], run, device="cpu", starts=8, steps=10)
    expected = np.asarray(Image.open(upright).resize((8, 8), Image.Resampling.LANCZOS)).astype(int)
    for one in found[:4]:
        assert np.abs(half(one.picture, 0) - expected)[:, 3:-3].max() <= 1  # the filter sees beyond the cropped sides
        assert one.distance == pytest.approx(found[0].distance, abs=0.01)
    grey = half(found[4].picture, 0)
    assert (grey[..., 0] == grey[..., 1]).all()


def test_what_cannot_be_projected_is_told_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png", Generator.from_pretrained(run).sample(1)[0])
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "other").mkdir()
    twin = photo(tmp_path / "other" / "good.jpg", torch.zeros(3, 8, 8, dtype=torch.uint8))

    def fails(words: str, *photos: Path, **arguments: object) -> None:
        with pytest.raises(InputError, match=words):
            project(photos, **{"source": run, "device": "cpu"} | arguments)  # type: ignore[arg-type]

    fails("project needs photos")
    fails(r"none\.png cannot be read \(No such file or directory\): give other photos", tmp_path / "none.png")
    fails(r"bad\.png cannot be read", good, tmp_path / "bad.png")
    fails("other is a folder: name the photos in it", tmp_path / "other")
    fails("would be written to one file: project them one by one", good, twin)
    fails("is not a folder", good, source=tmp_path / "nowhere")
    fails("good.png is a file: name a folder with `out=DIR`", good, out=good)
    fails("`seed` must be from 0 to 4294967295, not -1", good, seed=-1)
    assert not (run / "projected").exists()
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path / "plane")
    fails("plane generates points, not pictures", good, source=tmp_path / "plane")


def test_a_file_that_holds_no_latents_is_refused(run: Path, tmp_path: Path) -> None:
    def fails(words: str, latents: Path, n: int = 1) -> None:
        with pytest.raises(InputError, match=words):
            generate(run, n, latents=latents)

    file = tmp_path / "z.safetensors"
    fails("z.safetensors cannot be read", file)
    file.write_bytes(b"nonsense")
    fails("z.safetensors is not a .safetensors file, or is damaged", file)
    save_file({"weights": torch.zeros(1, 4)}, file)
    fails("holds no latent codes", file)
    for wrong in (torch.zeros(4), torch.zeros(0, 4), torch.zeros(1, 4, dtype=torch.int64)):
        save_file({"latents": wrong}, file)
        fails("holds no latent codes, but", file)
    save_file({"latents": torch.full((1, 4), torch.nan)}, file)
    fails("NaN or infinite", file)
    save_file({"latents": torch.zeros(1, 5)}, file)
    fails("5 dimensions, and run takes 4", file)
    save_file({"latents": torch.zeros(3, 4)}, file)
    fails("decides on the number of samples, which is 3: leave `n` out", file, n=2)
    with pytest.raises(InputError, match="files that hold equally many, or one that holds a single code"):
        two = tmp_path / "two.safetensors"
        save_file({"latents": torch.zeros(2, 4)}, two)
        show(run, "interpolate", between=(file, two))
    with pytest.raises(InputError, match="`between` is for interpolations"):
        show(run, "samples", between=(file, file))
    save_file({"latents": torch.ones(1, 4)}, file, {"model": "another"})
    with pytest.warns(Notice, match="were found for other weights"):
        generate(run, 1, latents=file)


def test_the_command_line_projects(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = photo(tmp_path / "good.png", Generator.from_pretrained(run).sample(1)[0])
    assert run_cli(monkeypatch, "project", "--run", str(run), str(good), "--out", str(tmp_path / "found")) == 0
    printed = capsys.readouterr().out
    assert f"Next: imletriton gen {run} --from {tmp_path}/found/good.safetensors" in printed
    latents = str(tmp_path / "found" / "good.safetensors")
    assert run_cli(monkeypatch, "gen", str(run), "--from", latents, "--out", str(tmp_path / "made")) == 0
    assert json.loads((tmp_path / "made" / "gen.json").read_text()).keys() == {"model", "latents"}
    assert run_cli(monkeypatch, "gen", str(run), "--from", latents, "--n", "2") == 2
    assert "decides on the number of samples, which is 1: leave --n out." in capsys.readouterr().err
