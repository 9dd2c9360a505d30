"""The benchmarks measure what they say. What trains for long is marked slow."""

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from benchmarks import counts, gains, measure, recipes, scale, soak, strategies
from benchmarks.gpu.training import TINY
from benchmarks.nearest import comparison as nearest
from benchmarks.nearest import methods
from benchmarks.quality import __main__ as quality
from benchmarks.quality import figures, judge, pictures, run, tables
from benchmarks.quality import methods as quality_methods
from benchmarks.training import comparison as training
from benchmarks.training import plain
from imletriton.data import load_points
from imletriton.data.faces import faces
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.training.build import build

ROOT = Path(__file__).parents[1]


def test_the_table_tells_exact_from_nearly_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, device = (20, 300, 40), torch.device("cpu")
    chosen = ("imletriton", "addmm in blocks + min", "flash-kmeans")
    monkeypatch.setattr(nearest, "METHODS", {name: methods.METHODS[name] for name in chosen})
    monkeypatch.setattr(nearest, "SHAPES", [shape])
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(nearest, "peak_flops", lambda device, dtype: 1e12)
    text = io.StringIO()
    result = nearest.run(device, [shape], Console(file=text, width=150))
    json.dumps(result)
    rows = {(r["method"], r["data"]): r for r in result["rows"]}
    assert rows["float32 product", "normal"]["over_float32_product"] == 1
    for data in nearest.DATA:
        assert rows["imletriton", data]["nearest"] == 1
        assert rows["imletriton", data]["distance_error"] < 1e-5
        assert rows["imletriton", data]["seconds"] > 0
    offset = rows["addmm in blocks + min", "offset 10^4, distances 10^-2"]
    assert offset["nearest"] < 1
    assert offset["distance_error"] > 1e-2
    assert rows["flash-kmeans", "normal"]["why"] == "needs CUDA"
    assert "needs CUDA" in text.getvalue()


def small_generator() -> Generator:
    torch.manual_seed(0)
    return Generator(latent_dim=8, mapping_layers=2, width=8, blocks="1x1,4m1,16m4", bottleneck=0.5)


def test_the_plain_loop_has_the_same_network() -> None:
    generator, z = small_generator(), torch.randn(3, 8)
    torch.testing.assert_close(plain.PlainGenerator(generator)(z), generator(z), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_plain_loop_trains() -> None:
    generator = small_generator()
    recipe = Recipe.load(ROOT / "recipes/faces.toml", {"train.learning_rate": 0.005})
    loop = plain.PlainLoop(load_points("faces", 16)[:6], generator, recipe.train, 64, torch.device("cpu"))
    loop.select(*loop.draw(12))
    losses = [loop.epoch() for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data.resolution": 16, "generator.width": 8, "generator.blocks": "4x1,16m4", "generator.latent_dim": 8}
    monkeypatch.setattr(training, "SIZES", {"cpu": [small]})
    monkeypatch.setattr(training, "POOL", {"cpu": 8})
    monkeypatch.setattr(training, "N", {"cpu": 8})
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "FEWEST", 2)
    monkeypatch.setattr(gains, "CALLS", 2)
    monkeypatch.setattr(measure, "peak_flops", lambda device, dtype: 1e12)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_training_is_measured_beside_the_plain_loop() -> None:
    text = io.StringIO()
    (found,) = training.run(torch.device("cpu"), Console(file=text, width=150))
    json.dumps(found)
    for name in ("pool", "training"):
        row = found[name]
        assert row["ratio"] == pytest.approx(row["per_s"] / row["plain_per_s"])
        assert 0 < row["share_of_peak"] < 1
    assert found["gen_per_s"] > 0
    assert "pool samples" in text.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_every_optimisation_can_be_taken_away_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gains, "CALLS", 1)
    monkeypatch.setitem(training.SIZES, "cpu", [TINY])
    found = gains.run(torch.device("cpu"))
    assert [*found] == gains.NAMES
    assert all(gain > 0 for row in found.values() for gain in row.values())
    assert found["bfloat16 products"].keys() == {"pool", "training"}
    assert len(gains.table(found)) == len(found)


@pytest.mark.slow
def test_a_soak_is_recorded_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "MARKS", 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["soak", "--steps", "24", "--device", "cpu", "--out", str(tmp_path)])
    status = soak.main()
    (file,) = tmp_path.glob("*-soak.json")
    found = json.loads(file.read_text())
    assert [row["step"] for row in found["rows"]] == [6, 12, 18, 24]
    for row in found["rows"]:
        assert 0 < row["allocated_mb"] < row["memory_mb"]
    assert found["rows"][-1]["log_kb"] > 0  # a line at step 20
    assert (status == 0) == found["verdict"].startswith("Nothing grows")
    assert found["verdict"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "at_the_end", "steady"),
    [("memory_mb", 101.9, True), ("memory_mb", 102.1, False), ("open_files", 9, False), ("threads", 4, False)],
)
def test_a_soak_fails_where_memory_files_or_threads_grow(what: str, at_the_end: float, steady: bool) -> None:
    rows = [{"step": step, "memory_mb": 100.0, "open_files": 8, "threads": 3} for step in range(400, 20_001, 400)]
    rows[0]["memory_mb"] = 50.0  # before it has settled
    rows[4]["memory_mb"] = rows[-1]["memory_mb"] = 90.0  # and for moments later
    assert soak.verdict(rows)[0]
    for row in rows[-6:]:
        row[what] = at_the_end
    found, told = soak.verdict(rows)
    assert found == steady
    assert "100.0 MiB (median of steps 2,000 to 4,000)" in told


@pytest.mark.slow
def test_what_grows_with_the_pictures_is_measured_and_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = scale.alone

    def alone(what: str, n: int, *others: Any) -> dict[str, Any]:  # one of them in a process of its own: they are slow
        return (real if (what, n) == ("checkpoint", 8) else scale.measured)(what, n, *others)

    monkeypatch.setattr(scale, "alone", alone)
    monkeypatch.setattr(scale, "NUMBERS", (4, 8))
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["scale", "--device", "cpu", "--out", str(tmp_path)])
    scale.main()
    (file,) = tmp_path.glob("*-scale.json")
    found = json.loads(file.read_text())
    assert [(row["n"], row["what"]) for row in found["rows"]] == [(n, what) for n in (4, 8) for what in scale.WHAT]
    rounds = {(row["what"], row["n"]): row for row in found["rows"] if "samples" in row}
    assert {key: row["samples"] for key, row in rounds.items()} == {
        ("round", 4): 40,
        ("round", 8): 80,
        ("small round", 4): 4,
        ("small round", 8): 8,
    }
    for row in rounds.values():
        assert sum(row[f"{part}_s"] for part in scale.PARTS) == pytest.approx(row["seconds"], rel=0.1)
    assert all(row["seconds"] > 0 and row["memory"] >= 0 for row in found["rows"])
    assert found["rows"][-1]["bytes"] > 10**6
    assert "\n".join(scale.table(found["rows"])) in capsys.readouterr().out
    assert file.with_suffix(".md").read_text().splitlines() == scale.table(found["rows"])


def test_samples_are_judged_by_how_they_lie_about_the_data() -> None:
    class Copies:
        """Half of its samples are data points, but never the last one; the others are far off."""

        def sample(self, n: int, seed: int) -> torch.Tensor:
            data = points[:-1].repeat(n, 1)[: n // 2]
            return torch.cat([data, torch.full((n - n // 2, 2), 9.0)])

    recipe = Recipe.load(ROOT / "recipes/toy2d.toml")
    points = strategies.load_points("toy2d", 0)
    judged = strategies.judge(Copies(), points, recipe)  # type: ignore[arg-type]
    assert judged["near"] == 0.5
    assert judged["reached"] == pytest.approx(11 / 12)
    assert judged["smallest_share"] == 0
    assert judged["distance"] > 3


@pytest.mark.slow
def test_a_strategys_run_is_judged_and_tabled() -> None:
    found = strategies.one_run("toy2d", "adaptive-rejection", seed=3, steps=200)
    assert (found["strategy"], found["seed"], found["steps"]) == ("adaptive-rejection", 3, 200)
    assert found["draws"] > 2
    *_, row = strategies.table([found, found | {"near": found["near"] + 0.2}])
    assert row.startswith(f"| adaptive-rejection | {found['near'] + 0.1:.3f} ± 0.141 |")


def test_figures_of_quality_tell_copies_from_creations_and_blur_from_detail() -> None:
    trained, others = (quality_methods.draw(32, 60, seed) for seed in (11, 12))
    copies = run.judge(trained.repeat(2, 1, 1, 1), trained, others)
    assert (copies["authenticity"], copies["near"], copies["reached"]) == (0.0, 1.0, 1.0)
    assert copies["sample_to_training"] == 0.0
    fresh = run.judge(quality_methods.draw(32, 60, 13), trained, others)
    assert fresh["authenticity"] > 0.2
    assert fresh["near"] < 0.1
    assert fresh["coverage"] > 0.7
    assert fresh["density"] == pytest.approx(1, abs=0.3)
    assert fresh["sharpness"] == pytest.approx(1, abs=0.1)
    blurred = F.avg_pool2d(trained.float(), 3, 1, 1).byte()
    assert run.judge(blurred, trained, others)["sharpness"] < 0.2
    constant = run.judge(trained[:1].repeat(60, 1, 1, 1), trained, others)
    assert constant["frechet"] > 4 * fresh["frechet"]
    assert constant["recall"] == 0
    stripes = (128 + 100 * torch.sin(torch.arange(32) * 2 * torch.pi * 5 / 32)).byte().expand(1, 3, 32, 32)
    energy = figures.octaves(stripes)
    assert energy.index(max(energy)) == 2  # five cycles: the octave from 4 to 8


def small_runs(monkeypatch: pytest.MonkeyPatch, samples: int, *names: str) -> None:
    """Let benchmarks.quality compare these methods only, with small networks, on so many samples and true pictures."""
    for module, name in ((quality_methods, "TRUTH"), (run, "TRUTH"), (run, "SAMPLES")):
        monkeypatch.setattr(module, name, samples)
    few = {name: quality_methods.METHODS[name] | {"selection.pool": "1n", "generator.width": 8} for name in names}
    for module in (quality, quality_methods, pictures, tables):
        monkeypatch.setattr(module, "METHODS", few)
    monkeypatch.setattr(quality, "ProcessPoolExecutor", ThreadPoolExecutor)  # no fork of a process that has trained


def call_quality(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--jobs", "1", *map(str, words)])
    quality.main()


def test_missing_runs_are_made_at_equal_images_and_at_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_runs(monkeypatch, 40, "rejection", "calibrated")
    monkeypatch.setitem(quality_methods.BEST, 32, "calibrated")
    made = []

    def one_run(method: str, resolution: int, seed: int, images: int, budget: str, folder: Path, *_: Any) -> Any:
        made.append((method, seed, images, budget))
        np.save(folder / f"{method}-{resolution}-{seed}-{budget}.npy", np.zeros((64, 3, 32, 32), np.uint8))
        setting = {"method": method, "resolution": resolution, "seed": seed, "budget": budget, "images": images}
        seconds = images * (2 if method == "rejection" else 4)
        return setting | {"date": "2026-01-01", "seconds": seconds, "frechet": 1 + seed * images / 4800, "recall": 0.5}

    monkeypatch.setattr(quality, "one_run", one_run)
    monkeypatch.setattr(quality, "floor", lambda *_: {})
    words = "--method", "calibrated", "--images", 4800, "--out", tmp_path
    call_quality(monkeypatch, *words, "--seeds", 1)
    call_quality(monkeypatch, *words, "--seeds", 2)
    assert made == [
        ("rejection", 0, 4800, "images"),
        ("calibrated", 0, 4800, "images"),
        ("calibrated", 0, 2400, "time"),
        ("rejection", 1, 4800, "images"),
        ("calibrated", 1, 4800, "images"),
        ("calibrated", 1, 2400, "time"),
    ]
    runs = json.loads((tmp_path / "quality-faces-32.json").read_text())["runs"]
    assert [(r["budget"], r["method"], r["seed"]) for r in runs[-2:]] == [("time", "calibrated", k) for k in (0, 1)]
    shown = capsys.readouterr().out
    assert "| equal images | Frechet | recall | p (Frechet) |" in shown
    assert "| rejection (2 seeds) | 1.500 ± 0.707 | 0.500 ± 0.000 |  |" in shown
    assert "| calibrated (2 seeds) | 1.250 ± 0.354 | 0.500 ± 0.000 | 0.500 |" in shown
    assert Image.open(tmp_path / "quality-faces-32-time.png").width > 2 * 8 * 32
    assert Image.open(tmp_path / "quality-faces-32-time-pairs.png").width > 2 * 12 * 32


class SmallNetwork(nn.Module):
    """Stands in for the trained network, which the extra `quality` has."""

    def extract_features(self, images: Tensor) -> Tensor:
        kernels = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        return F.conv2d(images, kernels, stride=2).relu()


def test_a_trained_judge_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "is_installed", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        call_quality(monkeypatch, "--trained")
    assert stopped.value.code == 2
    assert "uv sync --extra quality" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_are_trained_and_judged_also_by_the_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_runs(monkeypatch, 40, "rejection", "calibrated")
    monkeypatch.setattr(quality, "is_installed", lambda: True)
    monkeypatch.setattr(judge, "network", SmallNetwork)
    words = "--trained", "--method", "calibrated", "--seeds", 1, "--images", 32, "--budget", "images"
    call_quality(monkeypatch, *words, "--out", tmp_path)
    found = json.loads((tmp_path / "quality-faces-32-trained.json").read_text())
    assert [(r["method"], r["images"]) for r in found["runs"]] == [("rejection", 32), ("calibrated", 32)]
    assert found["floor"]["others"]["trained_frechet"] < min(r["trained_frechet"] for r in found["runs"])
    assert found["floor"]["others, blurred by 3x3 pixels"]["frechet"] > found["floor"]["others"]["frechet"]
    assert "| equal images | trained: Frechet |" in capsys.readouterr().out


@pytest.mark.skipif(not judge.is_installed(), reason="needs the extra `quality`")
def test_the_trained_network_knows_what_pictures_show() -> None:
    near, far = judge.trained_features(quality_methods.draw(64, 160, seed=1)), torch.rand(80, 3, 64, 64)
    apart = judge.trained_features(far.mul(255).byte())
    assert near.shape == (160, 1280)
    assert figures.compared(near[:80], near[80:])["frechet"] < figures.compared(apart, near[80:])["frechet"] / 3


@pytest.mark.slow
def test_a_folders_held_out_pictures_are_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for k, picture in enumerate(faces(40, 24, seed=1)):
        Image.fromarray(picture).save(folder / f"{k}.png")
    small_runs(monkeypatch, 40, "rejection")
    words = "--source", folder, "--holdout", 0.25, "--seeds", 1, "--images", 32, "--budget", "images"
    call_quality(monkeypatch, *words, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/quality-my pictures-32.json").read_text())
    assert [r["method"] for r in found["runs"]] == ["rejection"]
    assert found["holdout"] == 0.25
    source = quality_methods.Source(str(folder), 0.25)
    truth, trained_on = source.truth(32), source.training(32)
    assert (len(truth), len(trained_on)) == (6, 18)
    expected = figures.distance_apart(truth, trained_on)
    assert found["floor"]["distances"]["training"] == pytest.approx(expected)
    assert expected > 0  # none of the truth has been trained on


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/results").glob("strategies-*.json")), ids=lambda f: f.stem)
def test_the_docs_show_what_was_measured(file: Path) -> None:
    page = (ROOT / "docs/strategies.md").read_text()
    assert all(line in page for line in strategies.table(json.loads(file.read_text())["runs"]))


def test_the_readme_shows_the_speeds_that_were_measured() -> None:
    page = (ROOT / "benchmarks/README.md").read_text()
    *_, newest = sorted((ROOT / "benchmarks/results").glob("*-training-*.json"), key=lambda f: f.name[-15:])
    assert all(line in page for line in training.rows(json.loads(newest.read_text())["training"]))


def test_the_table_of_gains_shows_what_was_measured() -> None:
    page = (ROOT / "benchmarks/README.md").read_text()
    for file in (ROOT / "benchmarks/results").glob("*-gains.json"):
        measured = json.loads(file.read_text())["gains"]
        assert all(line in page for line in gains.table({name: measured[name] for name in gains.NAMES}))


@pytest.mark.slow
def test_the_recipes_page_shows_what_is_counted() -> None:
    assert recipes.page() in (ROOT / "recipes/README.md").read_text()


def test_pools_are_counted_as_the_trainer_draws_them() -> None:
    """Under adaptive, all points keep away from their thresholds, or all reach them at once."""
    iterations = 40
    for strategy, distance in [("rejection", None), ("adaptive", 1.0), ("adaptive", 0.0)]:
        paces = {"refresh": 3} if distance is None else {"staleness": 2, "forced_refresh": 5}
        overrides = {"selection.strategy": strategy, "train.iterations": iterations, "train.batch_size": 5}
        recipe = Recipe.load(
            ROOT / "recipes/toy2d.toml", overrides | {f"selection.{key}": pace for key, pace in paces.items()}
        )
        trainer = build(recipe, load_points("toy2d", 0), torch.device("cpu"))
        while trainer.step < iterations:
            if trainer.step % trainer.steps_per_epoch == 0:
                if distance is not None and trainer.step:
                    trainer.distances.fill_(distance)
                    trainer.strategy.tau.fill_(1.0)
                list(trainer.start_epoch())
            trainer.train_step()
        fewest, most = recipes.pools(recipe, trainer.n)
        assert trainer.draws == (most if distance == 0 else fewest)


@pytest.mark.slow
def test_a_recipes_operations_are_those_of_the_papers_network() -> None:
    generator = Recipe.load(ROOT / "recipes/dog.toml").generator
    of_sample, of_image = recipes.flops(generator, "vgg", "features")
    assert of_sample / 1e9 == pytest.approx(63.2 + 40.1, abs=0.1)
    assert recipes.flops(generator, "vgg", "pixels")[0] / 1e9 == pytest.approx(63.2, abs=0.1)
    assert of_image / 1e9 == pytest.approx(3 * 63.2 + 2 * 40.1, abs=0.2)  # VGG16's own weights need no gradient


def test_operators_waits_and_casts_are_counted() -> None:
    weight, x = torch.ones(3, 3), torch.ones(3)
    with counts.OperatorCounts([weight]) as counted:
        half = weight.bfloat16()  # a cast of a weight
        _ = x.bfloat16(), half.T, torch.empty(2)  # another cast; neither a view nor an allocation is a launch
        _ = x[x > 0], float(x.sum())
    row = counted.row()
    assert row["operators"] == {"aten::_to_copy": 2, "aten::gt": 1, "aten::index": 1, "aten::sum": 1} | (
        {"aten::_local_scalar_dense": 1}
    )
    assert (row["casts"], row["casts of weights"], row["waits"]) == (2, 1, 2)


@pytest.mark.slow
def test_searches_and_steps_are_counted() -> None:
    rows = counts.count_searches()
    assert rows["nearest"]["launches"] <= 10
    assert rows["nearest, some of the queries"]["launches"] <= 13
    assert rows["nearest, with a rejection radius"]["launches"] <= 21
    assert all(row["of imletriton's kernels"] >= 5 and row["waits"] == 0 for row in rows.values())
    recipe = Recipe.load(ROOT / "recipes/toy2d.toml", {"train.precision": "float32"})
    trainer = build(recipe, load_points("toy2d", 0), counts.DEVICE)
    step = counts.count_step(trainer)
    assert step["launches"] > 20
    assert (step["waits"], step["casts of weights"]) == (0, 0)
