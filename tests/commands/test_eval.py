import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from PIL import Image
from small_networks import SmallInception, SmallVGG

from imletriton.commands import eval as evaluating
from imletriton.commands.eval import evaluate
from imletriton.commands.fit import fit
from imletriton.commands.gen import generate
from imletriton.commands.report import report
from imletriton.commands.show import show
from imletriton.console import WorkDisplay, console
from imletriton.data import held_out, load_points, training_part
from imletriton.errors import InputError, Interrupted, Notice
from imletriton.generator import Generator
from imletriton.metrics import authenticity, authenticity_of_data, frechet_distance, kernel_distance, precision_recall
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import save_checkpoint
from imletriton.runs.run import Run
from imletriton.runs.schema import Metric
from imletriton.tables import metrics_table
from imletriton.training.reporter import Reporter


@pytest.fixture(autouse=True)
def _small_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.metrics.networks.Inception", SmallInception)
    monkeypatch.setattr("imletriton.metrics.networks.VGG16", SmallVGG)
    monkeypatch.setattr("imletriton.training.fid.Inception", SmallInception)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from conftest import TINY

    folder = tmp_path_factory.mktemp("eval")
    (folder / "tiny.toml").write_text(TINY)
    overrides = {"data.holdout": 0.05, "train.iterations": 20}
    return fit(Recipe.load(folder / "tiny.toml", overrides), folder / "run", device="cpu")


def test_a_run_is_judged_by_every_metric_it_can_be(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    metrics = ["fid", "kid", "precision", "recall", "authenticity"]
    result = evaluate(run.path, metrics=metrics, n=90, progress=lambda *words: calls.append(words))
    assert json.loads((run.path / "eval.json").read_text()) == result.to_json()
    assert run.evaluation() == result
    samples = Generator.from_pretrained(run.path).sample(90)
    data = load_points("faces", 16)
    a, b = (SmallVGG(True)(x) for x in (samples, data))
    training = training_part(b, mirror=False, holdout=0.05)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values.pop("authenticity") == authenticity(a, training)
    assert result.metrics["authenticity"].reference == authenticity_of_data(training)
    assert result.metrics["authenticity"].pictures == 95
    assert result.copies and result.copies.startswith(f"{authenticity(a, training):.0%} of 90 samples are new pictures")
    precision, recall = precision_recall(a, b)
    assert values == pytest.approx(
        {"fid": frechet_distance(a, b), "kid": kernel_distance(a, b)[0], "precision": precision, "recall": recall}
    )
    assert result.pictures == 100
    assert result.step == 20
    assert calls[-1] == ("samples", 90, 90)
    assert "FID of so few (100 pictures, 90 samples) is biased upwards" in result.notes[0]
    assert result.notes[1] == "Recall of 100 pictures moves in steps of 1 %."
    assert result.notes[2] == "Pictures held out from training are among those compared with."
    one = evaluate(run.path / "checkpoints/000020", metrics=["recall"], n=60).metrics
    assert one["recall"].samples == 60
    assert one["fid"] == result.metrics["fid"]  # measured before, and kept
    assert list(evaluate(run.path, metrics=["fid"], pretrained=False).metrics) == ["fid"]  # by other networks


def test_no_more_samples_are_made_than_are_looked_at(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.metrics.comparison.FEW", 20)
    calls: list[tuple[str, int, int]] = []
    evaluate(run.path, metrics=["precision", "recall"], n=500, progress=lambda *words: calls.append(words))
    assert calls[-1] == ("samples", 20, 20)


def test_pictures_that_changed_since_training_are_told(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, face in enumerate(load_points("faces", 16)[:10]):
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    overrides = {"data.source": str(folder), "train.iterations": 4, "data.holdout": 0.2}
    run = fit(Recipe.load(recipe_file, overrides), tmp_path / "run", device="cpu")
    (folder / "3.png").unlink()
    for judge in (evaluate, show, report):
        with pytest.raises(InputError, match="holds other pictures than it was trained on: put those back"):
            judge(run.path)


def test_pictures_held_out_are_backtracked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "BACKTRACKING", {"starts": 2, "steps": 3})
    result = evaluate(run.path, metrics=["backtracking"], pretrained=False)
    metric = result.metrics["backtracking"]
    assert (metric.pictures, metric.starts, metric.steps) == (5, 2, 3)
    assert 0 < metric.value < 10
    with Image.open(run.path / "figures" / "backtracking.png") as picture:
        assert picture.height > 0
    assert result.notes[0].startswith("Random weights: compare these figures with each other only")


def test_held_out_pictures_are_the_ones_not_trained_on() -> None:
    kept, out = load_points("faces", 8, holdout=0.1), held_out(load_points("faces", 8), 0.1)
    assert (len(kept), len(out)) == (90, 10)
    both = torch.cat([kept, out]).flatten(1)
    everything = load_points("faces", 8).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, everything.tolist()))
    assert len(load_points("faces", 8, mirror=True, holdout=0.1)) == 180
    for share in (0.001, 0.99):
        with pytest.raises(InputError, match=rf"data.holdout {share} of 100 data points holds out \d+: at least 1"):
            load_points("faces", 8, holdout=share)


def test_any_folder_is_judged_with_the_same_ruler(run: Run, tmp_path: Path) -> None:
    folder, *_ = generate(run.path, 30, out=tmp_path / "samples")
    (run.path / "eval.json").unlink(missing_ok=True)
    judged = evaluate(None, samples=folder, data="faces", metrics=["fid", "recall"])
    assert judged.metrics == evaluate(run.path, n=30, metrics=["fid", "recall"]).metrics
    assert judged.written is None
    assert judged.notes[-1] == f"Files in {folder} that are not pictures were left out: 1."  # gen.json
    (run.path / "eval.json").unlink()
    some = evaluate(run.path, samples=folder, metrics=["fid"], n=20)
    assert (some.data, some.count, some.step) == ("faces", 20, None)
    assert some.notes[-1] == f"The first 20 of 30 pictures in {folder} were taken, by name."
    assert not (run.path / "eval.json").exists()


def test_a_known_data_set_comes_with_its_published_figures(tmp_path: Path) -> None:
    folder = tmp_path / "AnimalFace-dog"
    folder.mkdir()
    for k, face in enumerate(load_points("faces", 16)[:5]):
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    result = evaluate(None, samples=folder, data=str(folder), metrics=["fid"])
    assert result.published["RS-IMLE"]["fid"] == 23.1
    assert result.metrics["fid"].value == pytest.approx(0, abs=1e-9)


def picture(path: Path, width: int = 8, height: int = 8) -> None:
    Image.new("RGB", (width, height), (width, height, 9)).save(path)


def test_bad_input_is_one_clear_sentence(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def fails(words: str, **arguments: object) -> None:
        with pytest.raises(InputError, match=words):
            evaluate(**{"source": None, "samples": folder, "data": "faces"} | arguments)  # type: ignore[arg-type]

    fails("'recal' is not known: did you mean 'recall'", metrics=["recal"])
    fails("`n` must be from 2", n=1)
    fails("holds no images")
    fails("`samples` .*nowhere is not a folder", samples=tmp_path / "nowhere")
    fails("'FIDS' is not known: did you mean 'fid'", metrics=["FIDS"])
    fails("eval needs a run, or `samples=DIR` with `data=SOURCE`", data=None)
    fails("nowhere is not a folder", source=tmp_path / "nowhere")
    picture(folder / "a.png")
    fails("holds one image only")
    picture(folder / "b.png")
    fails("backtracking needs a run that was trained with data.holdout", metrics=["backtracking"])
    fails("100 pictures and 2 samples are too few .*: at least 4 of both are needed", metrics=["recall"])
    fails("toy2d holds points, not pictures", data="toy2d")
    assert list(evaluate(None, folder, "faces").metrics) == ["fid", "kid", "authenticity"]  # what can be had
    picture(folder / "c.png", 16, 16)
    fails(r"holds pictures of 8x8 \(a.png\), 16x16 \(c.png\): they must be squares of one size")
    (folder / "c.png").unlink()
    picture(folder / "d.png", 8, 9)
    fails("squares of one size")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:40])
    fails("d.png cannot be read")
    Image.new("1", (20_000, 20_000)).save(folder / "d.png")
    fails("d.png cannot be read .*more than the 120,000,000 pixels")


def test_points_in_the_plane_are_no_pictures(tmp_path: Path) -> None:
    model = Generator(latent_dim=2, mapping="none", decoder="mlp", width=4)
    save_checkpoint(tmp_path / "toy", 4, model, {}, {"step": 4, "data": ""}, keep=1)
    (tmp_path / "toy/recipe.toml").write_text(Recipe.load("toy2d").to_toml())
    with pytest.raises(InputError, match="holds points, not pictures"):
        evaluate(tmp_path / "toy")
    with pytest.raises(InputError, match="toy generates points, not pictures"):
        evaluate(tmp_path / "toy", data="faces")


def test_fit_measures_the_fid_in_passing_and_keeps_the_best(recipe_file: Path, tmp_path: Path) -> None:
    short = {"train.iterations": 30}
    overrides = short | {"log.fid_every": 10, "log.fid_samples": 40, "log.keep": 1, "log.checkpoint_every": 30}
    run = fit(Recipe.load(recipe_file, overrides), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    fids = {line["step"]: line["fid"] for line in lines if "fid" in line}
    assert list(fids) == [10, 20, 30]
    kept = {int(p.name) for p in run.checkpoints}
    assert {min(fids, key=lambda step: fids[step]), 30} <= kept
    assert len(kept) <= 2
    assert evaluate(run.path, n=40, metrics=["fid"]).metrics["fid"].value == pytest.approx(fids[30])

    # Measuring changes nothing, and a resumed run measures the same.
    plain = fit(Recipe.load(recipe_file, short), tmp_path / "plain", device="cpu")
    weights = [(r.path / "checkpoints/000030/model.safetensors").read_bytes() for r in (run, plain)]
    assert weights[0] == weights[1]

    class Stops(Reporter):
        def fid(self, done: int, total: int) -> None:
            if done == 32:
                signal.raise_signal(signal.SIGINT)

    for _ in range(2):  # at 10 again: nothing goes on without its FID
        resume = (tmp_path / "stopped").exists()
        with pytest.raises(Interrupted, match="stopped at step 10 and saved"):
            fit(Recipe.load(recipe_file, overrides), tmp_path / "stopped", "cpu", resume, Stops())
    resumed = fit(Recipe.load(recipe_file, overrides), tmp_path / "stopped", device="cpu", resume=True)
    assert {record.step: record.fid for record in resumed.log() if record.fid is not None} == fids


def test_the_fid_of_points_in_the_plane_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log.fid_every is for pictures"):
        Recipe.load(Path(__file__).parents[2] / "recipes/toy2d.toml", {"log.fid_every": 5})


def test_the_command_line_tells_the_figures(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run.path), "--n", "30", "--metrics", "fid,kid"]
    assert run_cli(monkeypatch, *words) == 0
    output = capsys.readouterr().out
    assert "step 20: 30 samples against 100 pictures of faces" in output
    assert "FID" in output
    assert run_cli(monkeypatch, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run.path / "eval.json").read_text())
    assert run_cli(monkeypatch, *words, "--weights", "good") == 2
    assert "--weights 'good' is not known" in capsys.readouterr().err
    measured = {"metrics": {"fid": Metric(value=50.0)}, "published": {"RS-IMLE": {"fid": 23.1}}}
    evaluation = run.evaluation()
    assert evaluation is not None
    console.print(metrics_table(evaluation.model_copy(update=measured)))
    output = capsys.readouterr().out
    assert re.search(r"RS-IMLE, published *│ *23.1", output)
    assert "not measured here" in output


def test_what_was_measured_is_told_where_the_run_cannot_be_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    copy.evaluation_file.unlink(missing_ok=True)
    copy.evaluation_file.mkdir()
    words = ["eval", str(copy.path), "--n", "30", "--metrics", "fid,kid"]
    told = f"warning: Could not write {copy.evaluation_file} (Is a directory): these figures are kept nowhere else.\n"
    assert run_cli(monkeypatch, *words) == 0
    shown = capsys.readouterr()
    assert "30 samples against 100 pictures of faces" in shown.out
    assert shown.err.endswith(told)
    assert run_cli(monkeypatch, *words, "--json") == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert set(result["metrics"]) == {"fid", "kid"}
    assert result["written"] is None
    assert shown.err.endswith(told)


def test_figures_and_reconstructions_outlive_their_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "BACKTRACKING", {"starts": 1, "steps": 2})
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    shutil.rmtree(copy / "figures", ignore_errors=True)
    (copy / "figures").write_text("in the folder's place")
    with pytest.warns(Notice) as told:
        result = evaluate(copy, metrics=["backtracking"], pretrained=False)
    assert result.metrics["backtracking"].pictures == 5
    assert result.written
    assert str(told.pop().message) == f"Could not write {copy / 'figures/backtracking.png'} (File exists)."

    def remove(name: str, done: int, total: int) -> None:
        if name == "samples" and done == total:
            shutil.rmtree(copy)

    with pytest.warns(Notice, match=r"eval.json \(No such file or directory\): these figures are kept nowhere else\."):
        result = evaluate(copy, n=30, metrics=["fid"], progress=remove)
    assert result.metrics["fid"].value > 0
    assert result.written is None
    assert not copy.exists()


def test_the_seed_and_the_file_can_be_chosen(own_run: Run, tmp_path: Path) -> None:
    kept = evaluate(own_run, n=20, metrics=["fid"])
    folder = generate(own_run, 20, seed=5, out=tmp_path / "samples").folder
    file = tmp_path / "new/metrics.json"
    result = evaluate(own_run, n=20, metrics=["fid"], seed=5, out=file)
    assert result.metrics == evaluate(samples=folder, data="faces", metrics=["fid"]).metrics != kept.metrics
    assert json.loads(file.read_text()) == result.to_json()
    assert (result.samples, result.written) == ("seed 5", str(file))
    assert own_run.evaluation() == kept
    own = evaluate(own_run, n=20, metrics=["recall"], seed=5)
    assert list(own.metrics) == ["recall"]  # as the FID was of other samples
    judged = evaluate(own_run, samples=folder, metrics=["fid"], out=file)
    assert (judged.subject, judged.written) == (str(folder), str(file))


def test_progress_is_shown_when_piped_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WorkDisplay, "PAUSE", 0)
    assert run_cli(monkeypatch, "eval", str(run.path), "--n", "70", "--metrics", "fid", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["count"] == 70
    lines = re.findall(r"^(.+): (\d+)/(\d+)  \d:\d\d:\d\d left$", shown.err, re.MULTILINE)
    assert lines[0] == ("pictures by inception", "16", "100")
    assert ("samples", "64", "70") in lines
