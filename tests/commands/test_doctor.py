import hashlib
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from PIL import Image

from imletriton.commands import doctor
from imletriton.commands.doctor import examine


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_it_finds_what_is_here_and_what_is_missing(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "torch/hub/checkpoints/vgg16-397923af.pth"
    weights.parent.mkdir(parents=True)
    monkeypatch.setattr(
        "imletriton.distance.weights._checksum", lambda file: hashlib.sha256(b"weights").hexdigest()[:8]
    )
    weights.write_bytes(b"weights")
    weights.with_name("inception-2015-12-05.pt").touch()  # a download that failed
    (tmp_path / "datasets/100-shot-obama").mkdir(parents=True)
    (tmp_path / "datasets/AnimalFace-dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "datasets/AnimalFace-dog/a.png")
    (tmp_path / "broken.toml").write_text("name = 1")
    (tmp_path / "adaptive").mkdir()
    (tmp_path / "adaptive/tiny.toml").write_text(recipe_file.read_text().replace('"tiny"', '"tiny-adaptive"'))
    findings = list(examine(tmp_path, tmp_path / "datasets"))
    details = {f"{finding.subject} {finding.state}": finding.detail for finding in findings}
    assert details["search good"].startswith("the CPU's search: ")
    assert details["search good"].endswith(" checks agree with float64")
    assert str(weights) in details["vgg weights good"]
    assert "is damaged: remove it" in details["inception weights missing"]
    assert details["data sets good"].startswith("dog in ")
    assert "broken.toml" in details["recipes missing"]
    assert details["recipes good"].startswith("tiny, tiny-adaptive: a step takes")
    assert not list(tmp_path.glob(".imletriton-doctor"))
    weights.unlink()
    details = {finding.subject: finding.detail for finding in examine(tmp_path / "none", tmp_path)}
    assert "offline, put https://download.pytorch.org/models/vgg16-397923af.pth at" in details["vgg weights"]
    assert "install imletriton again" in details["recipes"]


def test_a_search_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "doctor") == 0
    capsys.readouterr()

    def fails(device: torch.device) -> str:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(doctor, "_search", fails)
    assert run_cli(monkeypatch, "doctor") == 1
    output = capsys.readouterr()
    assert "!!  search: RuntimeError: no kernel image is available" in output.out
    assert all(len(line) <= 100 or " " not in line.strip() for line in output.out.splitlines())  # a long path alone
    assert "training cannot run here: search" in output.err


def test_a_search_that_disagrees_is_told_by_name_and_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"duplicates": lambda device: "", "float16": lambda device: "squared distances are off by up to 1e-03"}
    monkeypatch.setattr(doctor, "checks", lambda: checks)
    [finding] = [finding for finding in examine() if finding.subject == "search"]
    assert finding.state == "broken"
    assert finding.detail.endswith(
        "1 of 2 checks agree with float64; float16: squared distances are off by up to 1e-03"
    )


def test_a_gpu_that_does_not_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA-capable device is busy")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    findings = {finding.subject: finding for finding in examine()}
    assert findings["GPU"].state == "broken"
    assert "CUDA-capable device is busy" in findings["GPU"].detail
    assert "search" not in findings
