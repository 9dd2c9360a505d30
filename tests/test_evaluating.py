import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imletriton import evaluating
from imletriton.data import held_out, load_points
from imletriton.errors import InputError
from imletriton.evaluating import evaluate
from imletriton.fitting import fit
from imletriton.generating import generate
from imletriton.metrics import frechet_distance, kernel_distance, precision_recall
from imletriton.metrics.networks import Network
from imletriton.recipe import Recipe
from imletriton.run import Run


class Small(Network):
    """Stands for Inception and VGG16: random convolutions, 24 features."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float() / 255)


class SmallInception(Small):
    name = "inception"


class SmallVGG(Small):
    name = "vgg"


@pytest.fixture(autouse=True)
def _small_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "Inception", SmallInception)
    monkeypatch.setattr(evaluating, "VGG16", SmallVGG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from conftest import TINY

    folder = tmp_path_factory.mktemp("eval")
    (folder / "tiny.toml").write_text(TINY)
    overrides = {"data.holdout": 0.05, "train.iterations": 20}
    return fit(Recipe.load(folder / "tiny.toml", overrides), folder / "run", device="cpu")


def test_a_run_is_judged_by_every_metric_it_can_be(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    metrics = ["fid", "kid", "precision", "recall"]
    result = evaluate(run.path, metrics=metrics, n=90, progress=lambda *words: told.append(words))
    assert json.loads((run.path / "eval.json").read_text()) == result
    samples = evaluating.Generator.from_pretrained(run.path).sample(90)
    data = load_points("faces", 16)
    a, b = (Small(True)(x) for x in (samples, data))
    found = {name: values["value"] for name, values in result["metrics"].items()}
    precision, recall = precision_recall(a, b)
    assert found == pytest.approx(
        {"fid": frechet_distance(a, b), "kid": kernel_distance(a, b)[0], "precision": precision, "recall": recall}
    )
    assert result["pictures"] == 100
    assert result["step"] == 20
    assert told[-1] == ("samples", 90, 90)
    assert "FID depends on how many are compared, here 100 pictures and 90 samples" in result["notes"][0]


def test_pictures_held_out_are_backtracked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "BACKTRACKING", {"starts": 2, "steps": 3})
    result = evaluate(run.path, metrics=["backtracking"], pretrained=False)
    found = result["metrics"]["backtracking"]
    assert (found["pictures"], found["starts"], found["steps"]) == (5, 2, 3)
    assert 0 < found["value"] < 10
    with Image.open(run.path / "figures" / "backtracking.png") as picture:
        assert picture.height > 0
    assert result["notes"][0].startswith("Random weights: these figures compare with each other")


def test_held_out_pictures_are_the_ones_not_trained_on() -> None:
    kept, out = load_points("faces", 8, holdout=0.1), held_out("faces", 8, 0.1)
    assert (len(kept), len(out)) == (90, 10)
    both = torch.cat([kept, out]).flatten(1)
    everything = load_points("faces", 8).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, everything.tolist()))
    assert len(load_points("faces", 8, mirror=True, holdout=0.1)) == 180
    for share in (0.001, 0.99):
        with pytest.raises(InputError, match=rf"data.holdout {share} of 100 data points holds out \d+: at least 1"):
            load_points("faces", 8, holdout=share)


def test_any_folder_is_judged_with_the_same_ruler(run: Run, tmp_path: Path) -> None:
    folder, _ = generate(run.path, 30, out=tmp_path / "samples")
    (run.path / "eval.json").unlink(missing_ok=True)
    judged = evaluate(None, samples=folder, data="faces", metrics=["fid", "recall"])
    assert judged["metrics"] == evaluate(run.path, n=30, metrics=["fid", "recall"])["metrics"]
    assert judged["written"] is None
    assert judged["notes"][-1] == f"1 files in {folder} are no pictures and were left out."  # gen.json
    (run.path / "eval.json").unlink()
    assert evaluate(run.path, samples=folder, metrics=["fid"])["data"] == "faces"
    assert not (run.path / "eval.json").exists()


def test_a_known_data_set_comes_with_its_published_figures(tmp_path: Path) -> None:
    folder = tmp_path / "AnimalFace-dog"
    folder.mkdir()
    for k, face in enumerate(load_points("faces", 16)[:5]):
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    result = evaluate(None, samples=folder, data=str(folder), metrics=["fid"])
    assert result["published"]["RS-IMLE"]["fid"] == 23.1
    assert result["metrics"]["fid"]["value"] == pytest.approx(0, abs=1e-9)


def picture(path: Path, width: int = 8, height: int = 8) -> None:
    Image.new("RGB", (width, height), (width, height, 9)).save(path)


def test_bad_input_is_one_clear_sentence(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def fails(words: str, **arguments: object) -> None:
        with pytest.raises(InputError, match=words):
            evaluate(**{"source": None, "samples": folder, "data": "faces"} | arguments)  # type: ignore[arg-type]

    fails("'recal' is not known: did you mean 'recall'", metrics=["recal"])
    fails("--n must be at least 2", n=1)
    fails("holds no images")
    fails("eval needs a run, or --samples DIR with --data SOURCE", data=None)
    fails("nowhere holds no run with a checkpoint", source=tmp_path / "nowhere")
    fails("backtracking needs a run that was trained with data.holdout", metrics=["backtracking"])
    picture(folder / "a.png")
    picture(folder / "b.png")
    fails("100 pictures and 2 samples are too few, at least 4 of both are needed", metrics=["recall"])
    picture(folder / "c.png", 16, 16)
    fails(r"holds pictures of 8x8 \(a.png\), 16x16 \(c.png\): they must be squares of one size")
    (folder / "c.png").unlink()
    picture(folder / "d.png", 8, 9)
    fails("squares of one size")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:40])
    fails("d.png cannot be read")


def test_points_in_the_plane_are_no_pictures(tmp_path: Path) -> None:
    toy = Path(__file__).parents[1] / "recipes/toy2d.toml"
    overrides = {"train.iterations": 4, "log.every": 2, "log.samples_every": 4, "log.checkpoint_every": 4}
    run = fit(Recipe.load(toy, overrides), tmp_path / "toy", device="cpu")
    with pytest.raises(InputError, match="generates points, not pictures"):
        evaluate(run.path)


def test_fit_measures_the_fid_in_passing_and_keeps_the_best(recipe_file: Path, tmp_path: Path) -> None:
    overrides = {"log.fid_every": 15, "log.fid_samples": 40, "log.keep": 1, "log.checkpoint_every": 60}
    run = fit(Recipe.load(recipe_file, overrides), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    fids = {line["step"]: line["fid"] for line in lines if "fid" in line}
    assert list(fids) == [15, 30, 45, 60]
    best = min(fids, key=lambda step: fids[step])
    assert {int(p.name) for p in run.checkpoints} == {best, 60}
    assert evaluate(run.path, n=40, metrics=["fid"])["metrics"]["fid"]["value"] == pytest.approx(fids[60])

    # Measuring changes nothing, and a resumed run measures the same.
    plain = fit(Recipe.load(recipe_file), tmp_path / "plain", device="cpu")
    weights = [(r.path / "checkpoints/000060/model.safetensors").read_bytes() for r in (run, plain)]
    assert weights[0] == weights[1]
    other = tmp_path / "other"
    fit(Recipe.load(recipe_file, overrides | {"train.iterations": 30}), other, device="cpu")
    shutil.copytree(other, tmp_path / "copy")
    resumed = fit(Recipe.load(recipe_file, overrides), tmp_path / "copy", device="cpu", resume=True)
    lines = [json.loads(line) for line in resumed.log_file.read_text().splitlines()]
    assert {line["step"]: line["fid"] for line in lines if "fid" in line} == fids
