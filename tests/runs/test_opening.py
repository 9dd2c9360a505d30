"""Runs, checkpoints, lone folders and models of the Hugging Face Hub are opened alike by every command.

A server on this machine stands for the Hub: it answers HEAD and GET for a model's files as the Hub does.
"""

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import run_cli
from PIL import Image
from small_networks import SmallInception, SmallVGG

from imletriton.commands.eval import evaluate
from imletriton.commands.gen import generate
from imletriton.commands.report import report
from imletriton.commands.show import show
from imletriton.errors import InputError, Notice
from imletriton.generator import Generator
from imletriton.plotting.grids import image_grid
from imletriton.runs.opening import open_source
from imletriton.runs.run import Run, newest_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOY2D = Path(__file__).parents[2] / "recipes/toy2d.toml"


class Hub:
    """What the server offers, {"USER/NAME": {file: content}}, and the requests that it has had."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.requests: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if "/resolve/" not in handler.path:  # what else the Hub's client asks for is not offered
            handler.send_error(404)
            return
        self.requests.append(f"{handler.command} {handler.path}")
        model, _, rest = handler.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.models.get(model, {}).get(name)
        assert revision in ("main", self.commit)
        handler.send_response(200 if content else 404)
        if model not in self.models:
            handler.send_header("X-Error-Code", "RepoNotFound")
        elif content is None:
            handler.send_header("X-Error-Code", "EntryNotFound")
        handler.send_header("X-Repo-Commit", self.commit)
        if content:
            handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("Content-Length", str(len(content or b"")))
        handler.end_headers()
        if content and handler.command == "GET":
            handler.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def _small_and_in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.metrics.networks.Inception", SmallInception)
    monkeypatch.setattr("imletriton.metrics.networks.VGG16", SmallVGG)
    monkeypatch.setattr("imletriton.share.views.RECALLED", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def run(trained_run: Run) -> Run:
    """A run of our own, below runs/."""
    shutil.copytree(trained_run.path, "runs/tiny-001")
    return Run(Path("runs/tiny-001"))


def model_files(run: Run) -> dict[str, bytes]:
    return {name: (run.checkpoints[-1] / name).read_bytes() for name in ("config.json", "model.safetensors")}


def test_runs_checkpoints_and_folders_are_found_from_anywhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (None, run.path, str(run.path), run.checkpoints[-1]):
        opened = open_source(source)
        assert (opened.run, opened.checkpoint, opened.step) == (run, run.checkpoints[-1], 20)
        assert (opened.title, opened.version, opened.has_recipe) == ("tiny-001, step 20", "000020", True)
        assert open_source(opened) is opened
    older = open_source(run.checkpoints[0])
    assert (older.step, older.run) == (10, run)
    shutil.copytree(run.checkpoints[0], "alone")
    lone = open_source("alone")
    assert (lone.run, lone.checkpoint, lone.step, lone.has_recipe) == (Run(Path("alone")), Path("alone"), None, False)
    assert (lone.title, lone.version) == ("alone", "alone")
    whole = run.path.resolve()
    for inside, source in (
        ("checkpoints", "000010"),
        ("checkpoints/000010", "."),
        ("samples", "../checkpoints/000010"),
    ):
        monkeypatch.chdir(whole / inside)
        opened = open_source(source)
        assert (opened.run.path.resolve(), opened.step, opened.title) == (whole, 10, "tiny-001, step 10")
    monkeypatch.chdir(whole)
    assert open_source(".").run == Run(Path())
    assert open_source(Path()).title == "tiny-001, step 20"


def test_a_run_is_opened_anew_where_its_checkpoint_was_removed_meanwhile(run: Run) -> None:
    older, newest = run.checkpoints
    opened = [open_source(source) for source in (run.path, newest)]
    removed = newest.rename(newest.with_name(".000020"))
    assert [source.now().checkpoint for source in opened] == [older, newest]  # a checkpoint that is named is meant
    assert evaluate(opened[0], n=20, metrics=["fid"]).step == 10
    removed.rename(newest)


def test_every_command_looks_at_the_checkpoint_that_is_named(run: Run) -> None:
    older = run.checkpoints[0]
    assert evaluate(older, n=20, metrics=["fid"]).step == 10
    files = show(older)
    assert list(files) == ["samples", "nearest", "interpolate", "curves", "distances"]
    expected = image_grid(Generator.from_pretrained(older).sample(64))
    with Image.open(run.figure("samples")) as picture:
        assert np.array_equal(np.asarray(picture)[-expected.height :], np.asarray(expected))
    assert "10 of 20" in report(older).read_text()
    assert generate(older, 1)[0] == run.path / "gen" / "000010-seed-0"


def test_a_damaged_checkpoint_is_passed_over_by_every_command_and_refused_by_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = run.checkpoints
    file = newest / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run.log_file.write_bytes(b"\xff\n" + run.log_file.read_bytes())
    wrong = f"{file} is damaged or from another checkpoint (its SHA-256 sum is wrong)"
    with pytest.warns(Notice, match=re.escape(f"{wrong}: {older} is used instead.")):
        assert torch.equal(Generator.from_pretrained(run.path).sample(2), Generator.from_pretrained(older).sample(2))
    for command in (["gen", "--n", "2"], ["eval", "--n", "20", "--metrics", "fid"], ["show"], ["report"]):
        name, *options = command
        capsys.readouterr()
        assert run_cli(monkeypatch, name, str(newest), *options) == 2
        assert capsys.readouterr().err == f"error: {wrong}: use another checkpoint.\n"
        assert run_cli(monkeypatch, name, str(run.path), *options) == 0
        told = [f"warning: {wrong}: {older} is used instead.\n"]
        told += [f"warning: {run.log_file} has damaged lines, which are left out: 1 of 3.\n"] * (
            name in ("show", "report")
        )
        lines = capsys.readouterr().err.splitlines(keepends=True)
        assert [line for line in lines if line.startswith("warning: ")] == told
    assert json.loads(run.evaluation_file.read_text())["step"] == 10
    assert len(list((run.path / "gen/000010-seed-0").glob("*.png"))) == 2
    assert run.checkpoints == [older, newest]


def test_a_checkpoint_without_the_trainers_files_is_a_model_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in run.checkpoints[-1].glob("trainer.*"):
        file.unlink()
    for command in (["gen", "--n", "2"], ["show"], ["report"]):
        assert run_cli(monkeypatch, *command) == 0
    out = capsys.readouterr().out
    assert "nearest      not drawn: it comes without its recipe and the state of its training" in out
    assert run_cli(monkeypatch, "eval", "--n", "20", "--metrics", "fid") == 2
    assert (
        "tiny-001 comes without its recipe, so the pictures that it was trained on are not known"
        in capsys.readouterr().err
    )
    assert run_cli(monkeypatch, "eval", "--n", "20", "--metrics", "fid", "--data", "faces") == 0
    told = "Comparing tiny-001, step 20 with faces: loading PyTorch.\n"
    assert capsys.readouterr().err.startswith(told)


def test_a_model_of_the_hub_is_used_by_every_command(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Online, then offline from the cache; outputs go to a run's folder that is never the newest run."""
    hub.models["user/model"] = model_files(run)
    folder = Path("runs/user--model")
    for online in (True, False):
        if not online:
            use_hub(monkeypatch, "http://127.0.0.1:9")
        asked = len(hub.requests)
        assert run_cli(monkeypatch, "gen", "user/model", "--n", "3", "--device", "cpu") == 0
        names = sorted(p.name for p in (folder / "gen" / f"{COMMIT[:12]}-seed-0").glob("*.png"))
        assert names == ["000000.png", "000001.png", "000002.png"]
        assert run_cli(monkeypatch, "eval", "user/model", "--data", "faces", "--n", "20", "--metrics", "fid") == 0
        assert "runs/user--model: 20 samples against 100 pictures of faces" in capsys.readouterr().out
        assert json.loads((folder / "eval.json").read_text())["run"] == "runs/user--model"
        assert run_cli(monkeypatch, "show", "user/model") == 0
        shown = capsys.readouterr().out
        for view in ("samples", "interpolate"):
            assert f"{folder}/figures/{view}.png" in shown
        for view in ("nearest", "distances"):
            assert f"  {view:12} not drawn: it comes without its recipe and the state of its training" in shown
        assert "  curves       not drawn: it comes without the log of its training" in shown
        assert run_cli(monkeypatch, "report", "user/model") == 0
        html = (folder / "report.html").read_text()
        assert all(words in html for words in ("<title>user/model</title>", 'alt="interpolate"', "FID"))
        assert "<h2>Recipe</h2>" not in html
        assert (len(hub.requests) > asked) == online
    assert sum(request.startswith("GET /user/model/") for request in hub.requests) == 2  # once for each file
    assert newest_run() == run
    assert torch.equal(Generator.from_pretrained(open_source("user/model").checkpoint).sample(2), expected(run))


def expected(run: Run) -> torch.Tensor:
    return Generator.from_pretrained(run.path).sample(2)


def test_what_the_hub_lacks_is_one_sentence_of_every_command(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.models["user/empty"] = {"README.md": b"nothing"}

    def fails(source: str, words: str, commands: tuple[str, ...] = ("gen", "eval", "show", "report")) -> None:
        for command in commands:
            capsys.readouterr()
            assert run_cli(monkeypatch, command, source) == 2
            error = capsys.readouterr().err
            assert words in error
            assert error.startswith("error: ")
            assert error.count("\n") == 1

    fails("user/none", "The Hugging Face Hub has no model user/none that can be read from here: check the name")
    fails("user/empty", "user/empty on the Hugging Face Hub holds no config.json")
    asked = len(hub.requests)
    with pytest.raises(InputError, match=r"tiny-01 is not a folder: did you mean runs/tiny-001\?"):
        open_source("tiny-01")
    for name, words in (
        ("nosuch", "nosuch is not a folder: name a run"),
        ("runs/tiny-01", r"did you mean runs/tiny-001\?"),
    ):
        with pytest.raises(InputError, match=words):
            Generator.from_pretrained(name)
    fails("runs/tiny-01", "because runs/ means a folder here: did you mean runs/tiny-001?")
    assert len(hub.requests) == asked
    use_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the Hub's client waits before it tries again
    fails("user/other", "The Hugging Face Hub cannot be reached, and user/other is not in its cache")
    assert not Path("runs/user--none").exists()


def test_a_lone_folder_keeps_what_is_made_of_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("alone")
    folder.mkdir()
    for name, content in model_files(run).items():
        (folder / name).write_bytes(content)
    assert generate(folder, 1)[0] == folder / "gen" / "alone-seed-0"
    with pytest.raises(InputError, match=r"alone comes without its recipe.*`data=SOURCE`"):
        evaluate(folder)
    result = evaluate(folder, data="faces", n=20, metrics=["fid"])
    assert (result.run, result.step, result.written) == ("alone", None, "alone/eval.json")
    again = evaluate(folder, data="faces", n=20, metrics=["recall"])
    assert list(again.metrics) == ["recall"]  # nothing says that the FID was of the same weights
    reasons: dict[str, str] = {}
    assert list(show(folder, left_out=reasons.__setitem__)) == ["samples", "interpolate"]
    assert list(reasons) == ["nearest", "curves", "latents", "thresholds", "distances"]
    with pytest.raises(InputError, match="alone has no nearest to show: it comes without its recipe"):
        show(folder, "nearest")
    assert report(folder) == folder / "report.html"


def test_a_model_of_points_without_a_run_shows_its_samples(tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path / "points")
    assert list(show(tmp_path / "points")) == ["samples"]
    with pytest.raises(InputError, match="points, not pictures"):
        evaluate(tmp_path / "points", data="faces", metrics=["fid"])
