"""A model goes to the Hugging Face Hub with a card. A server on this machine stands for the Hub."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import run_cli
from huggingface_hub import ModelCard
from PIL import Image

from imletriton.errors import Notice
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.runs.schema import Evaluation, Metric
from imletriton.share.push import push


class Hub:
    """What was uploaded, {"USER/NAME": {file: content}}; whether it is private; what is answered instead."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refuses: dict[str, int] = {}  # {a part of the path: an HTTP status}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        assert handler.headers["Authorization"] == "Bearer hf_secret"
        for part, status in self.refuses.items():
            if part in handler.path:
                self.send(handler, status, {"error": "refused"})
                return
        address = f"http://127.0.0.1:{handler.server.server_port}"  # type: ignore[attr-defined]
        if handler.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization', 'user')}/{asked['name']}"
            if repo in self.models:
                self.send(handler, 409, {"error": "You already created this model repo", "url": f"{address}/{repo}"})
                return
            self.models[repo] = {}
            self.private[repo] = asked.get("private", False) or asked.get("visibility") == "private"
            self.send(handler, 200, {"url": f"{address}/{repo}", "name": repo, "id": repo})
        elif handler.path == "/api/validate-yaml":
            self.send(handler, 200, {"errors": [], "warnings": []})
        elif handler.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.send(handler, 200, {"files": files, "commitOid": "0" * 40})
        elif "/commit/main" in handler.path:
            repo = handler.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    self.models[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.send(handler, 200, {"commitUrl": f"{address}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self.send(handler, 404, {"error": handler.path})

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            served.answer(self)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)


@pytest.fixture
def run(own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in runs/ of the current folder, where no token is."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    return Run(own_run.path.relative_to(tmp_path))


def evaluated(run: Run, **changes: Any) -> None:
    values: dict[str, Any] = {
        **{"run": str(run.path), "step": 20, "samples": "seed 0", "count": 5000, "data": "/home/me/secret/faces"},
        **{
            "pictures": 100,
            "resolution": 16,
            "weights": "pretrained",
            "published": {},
            "imletriton": "1",
            "written": None,
        },
        "metrics": {"fid": Metric(value=12.345), "kid": Metric(value=0.01, deviation=0.002)},
        "notes": ["The least FID while training was at step 10: imletriton eval /home/me/run/checkpoints/000010"],
    }
    run.evaluation_file.write_text(json.dumps(Evaluation(**(values | changes)).to_json()))


def test_a_pushed_model_has_all_that_its_users_need(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(run)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for private in ([], ["--private"]):  # the second time it is there already, and gets a new version
        assert run_cli(monkeypatch, "push", "user/few-faces", *private) == 0
        assert capsys.readouterr().out.endswith("/user/few-faces\n")
    assert hub.private == {"user/few-faces": False}
    files = hub.models["user/few-faces"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "recipe.toml", "samples.png"}
    for name, content in files.items():
        Path(name).write_bytes(content)
    assert torch.equal(Generator.from_pretrained(".").sample(3), Generator.from_pretrained(run.path).sample(3))
    assert Image.open("samples.png").width == 1024
    assert Recipe.load("recipe.toml").name == "tiny"
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "imletriton"
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("fid", 12.345),
        ("kid", 0.01),
    ]
    for words in (
        "# few-faces\n\n![Random samples](samples.png)",
        "16x16 pictures, trained from scratch by IMLE with imletriton on 100 pictures.",
        'Generator.from_pretrained("user/few-faces")',
        "| FID ↓ | KID ↓ | \n|---|---|\n| 12.35 | 0.01 ± 0.002 |",
        "imletriton eval run/checkpoints/000010",
        'blocks = "4x1,8m4,16m8"',
    ):
        assert words in card.text
    assert "/home/" not in files["README.md"].decode()


def test_the_licence_of_the_data_is_told_where_it_is_known(run: Run, tmp_path: Path) -> None:
    recipe = Recipe.load(run.recipe_file)

    def card_of(source: str) -> ModelCard:
        run.recipe_file.write_text(recipe.with_source(source).to_toml())
        folder = tmp_path / "cards" / source.replace("/", "-")
        push(run.path, "user/model", out=folder)
        return ModelCard((folder / "README.md").read_text())

    ffhq = card_of("/home/me/datasets/ffhq100")
    assert ffhq.data.license == "cc-by-nc-sa-4.0"
    assert "Licence of the data: CC BY-NC-SA 4.0: FFHQ's" in ffhq.text
    dog = card_of("datasets/AnimalFace-dog")
    assert dog.data.license == "unknown"
    assert "AnimalFace Dog: Si, Zhu 2012 (AnimalFace).\n\nLicence of the data: none stated" in dog.text
    own = card_of("/home/me/skulls")  # which need not be those of the papers
    assert own.data.license == "unknown"
    assert "The pictures of a folder named `skulls`.\n\nimletriton does not know the licence of the data" in own.text
    assert "/home/me" not in own.content


@pytest.mark.parametrize(
    ("changes", "words"), [({"step": 10}, "is of step 10"), ({"weights": "random"}, "random weights")]
)
def test_metrics_of_other_weights_are_left_out(run: Run, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    evaluated(run, **changes)
    with pytest.warns(Notice, match=words):
        push(run, "user/model", out=tmp_path / "card")
    card = ModelCard((tmp_path / "card/README.md").read_text())
    assert card.data.eval_results is None
    assert "These weights have not been evaluated." in card.text


def test_a_model_of_points_and_one_without_a_run_can_be_pushed(run: Run, tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path / "points")
    assert push(tmp_path / "points", "user/points", out=tmp_path / "card") == str(tmp_path / "card")
    card = ModelCard((tmp_path / "card/README.md").read_text())
    assert card.data.pipeline_tag is None
    assert "A generator of points in the plane" in card.text and "float32 [64, 2]" in card.text
    assert "## Recipe" not in card.text and "The training data are not known." in card.text


def test_what_keeps_a_model_from_the_hub_is_one_sentence(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: str, *arguments: str) -> None:
        capsys.readouterr()
        assert run_cli(monkeypatch, "push", *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("imletriton.share.views.Shown.draw_samples", lambda shown: Image.new("RGB", (9, 9)))
    fails("'few-faces' is not an id of a model on the Hugging Face Hub: name it USER/NAME.", "few-faces")
    fails(
        "runs/tiny-001 is a folder here: name the model on the Hugging Face Hub, USER/NAME, after it.", "runs/tiny-001"
    )
    fails("push takes a run and the model's id on the Hub", "a", "b", "c/d")
    fails("runs is not an empty folder: choose a new or an empty one with --out DIR.", "user/model", "--out", "runs")
    fails("--device 'mps' is not known: use cuda or cpu.", "user/model", "--device", "mps")
    fails("nowhere is not a folder", "nowhere", "user/model")
    monkeypatch.delenv("HF_TOKEN")
    fails("There is no token of the Hugging Face Hub: log in with `hf auth login`, or set HF_TOKEN", "user/model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert not hub.models
    for part, status, words in (
        ("create", 401, "The Hugging Face Hub does not accept the token: log in again"),
        ("create", 403, "does not let this token write to user/model: check the name"),
        ("commit", 400, "refused user/model ("),
    ):
        hub.refuses = {part: status}
        fails(words, "user/model")
    use_hub(monkeypatch, "http://127.0.0.1:9")
    fails("The Hugging Face Hub cannot be reached (", "user/model")
