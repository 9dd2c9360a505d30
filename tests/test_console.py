"""`imletriton fit` where the pictures of a known set are missing: it fetches them, then trains."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import DOGS, Source, run_cli

import imletriton
from imletriton.data.fetching import CHUNK
from imletriton.data.files import list_images
from imletriton.errors import InputError
from imletriton.recipe import Recipe

ROOT = Path(__file__).parents[1]
DOG = ROOT / "recipes" / "dog.toml"
TINY = {
    "data.resolution": 16,
    "generator.latent_dim": 8,
    "generator.mapping_layers": 1,
    "generator.width": 8,
    "generator.blocks": "4x1,8m4,16m8",
    "distance.kind": "pixels",
    "distance.projection_dim": 64,
    "train.iterations": 2,
    "train.batch_size": 2,
}
CHANGES = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
FOLDER = Path("datasets/AnimalFace-dog")
PART = Path("datasets/.archives/AnimalFace-dog.zip.part")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(recipe: Path = DOG, *more: str) -> list[str]:
    return ["fit", str(recipe), "--device", "cpu", *CHANGES, *more]


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imletriton", *arguments]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], answer: str) -> tuple[int, str]:
    """Run the command line on a terminal, and answer its question; the exit code and what was shown."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def look() -> None:
        asked = bool(answer)
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                shown.extend(part)
                if asked and b"[Y/n]:" in shown:
                    os.write(ours, answer.encode())
                    asked = False

    user = threading.Thread(target=look)
    user.start()
    with os.fdopen(os.dup(theirs)) as typed, os.fdopen(theirs, "w") as screen, monkeypatch.context() as patch:
        for name, stream in (("stdin", typed), ("stdout", screen), ("stderr", screen)):
            patch.setattr(sys, name, stream)
        code = run_cli(patch, *arguments)
    user.join()
    os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;?]*\w", "", shown.decode()).replace("\r\n", "\n")


def test_fit_fetches_missing_pictures_and_trains(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can answer here, so it is not asked. The data.source decides, not where the recipe lies."""
    recipe = Path("recipes/adaptive/own.toml")
    recipe.parent.mkdir(parents=True)
    recipe.write_text(DOG.read_text())
    assert run_cli(monkeypatch, *fit(recipe)) == 0
    shown = capsys.readouterr().out
    address = os.environ["IMLETRITON_DATASETS_URL"]
    assert shown.startswith("The pictures of dog are not in datasets/AnimalFace-dog yet. They can be fetched:\n")
    assert f"  from     {address}/AnimalFace-dog.zip\n" in shown
    assert "  licence  none stated: for research; check before you publish pictures or samples\n" in shown
    assert f"  size     {len(DOGS) / 1e6:.1f} MB\nFetching them now.\n" in shown
    assert "datasets/AnimalFace-dog holds 3 images (the papers have 389).\n" in shown
    assert "Done. runs/dog-001 holds the trained generator." in shown
    assert run_cli(monkeypatch, *fit(recipe)) == 0
    assert "fetched" not in capsys.readouterr().out
    assert len(source.asked) == 1


def test_a_resumed_run_fetches_pictures_that_are_gone(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, *fit()) == 0
    FOLDER.rename("moved")
    more = ["--resume", "--set", "train.iterations=3"]
    capsys.readouterr()
    assert run_cli(monkeypatch, *fit(DOG, *more)) == 0
    shown = capsys.readouterr().out
    assert "They can be fetched" not in shown  # the archive is still here
    assert "on from step 2" in shown
    assert len(source.asked) == 1
    Path("datasets").rename("moved away")
    assert run_cli(monkeypatch, *fit(DOG, "--resume", "--set", "train.iterations=4")) == 0
    assert "They can be fetched" in capsys.readouterr().out
    assert len(source.asked) == 2


def test_what_else_is_wrong_is_told_before_anything_is_fetched(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--resume"], ["--run-dir", "/proc/run"], ["--set", "train.sed=1"]):
        assert run_cli(monkeypatch, *fit(DOG, *wrong)) == 2
        assert capsys.readouterr().out == ""
    assert not source.asked
    assert not Path("datasets").exists()


def test_on_a_terminal_it_asks_and_no_says_how_to_go_on(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    code, shown = on_a_terminal(monkeypatch, fit(), "n\n")
    assert code == 2
    assert "Fetch them now? [Y/n]:" in shown
    error = shown[shown.index("error: ") :]
    assert error.count("\n") == 1
    assert "`imletriton data get dog` fetches these later, or name a folder of your own with --set data.source" in error
    assert not source.asked
    assert not Path("datasets").exists()


@pytest.mark.parametrize(("arguments", "answer"), [([], "\n"), (["--yes"], "")])
def test_on_a_terminal_it_goes_on_after_return_or_with_yes(
    source: Source, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str
) -> None:
    # A pool that is too small ends it before it trains.
    code, shown = on_a_terminal(monkeypatch, fit(DOG, "--set", "selection.pool=2", *arguments), answer)
    assert code == 2
    assert "selection.pool is 2, fewer than the 3 data points" in shown
    assert ("Fetch them now?" in shown) == (not arguments)
    assert len(list_images(FOLDER)) == 3


def test_a_set_without_an_address_is_told_as_before(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("anime", "skulls", "shells"):
        assert run_cli(monkeypatch, "fit", str(ROOT / "recipes" / f"{name}.toml"), "--yes") == 2
        shown = capsys.readouterr()
        assert f"put its pictures into datasets/{name}." in shown.err
        assert shown.out == ""


def test_a_source_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    monkeypatch.setenv("IMLETRITON_DATASETS_URL", "http://127.0.0.1:9")
    assert run_cli(monkeypatch, *fit()) == 2
    shown = capsys.readouterr()
    assert "  size     unknown: the server does not say\n" in shown.out
    assert "http://127.0.0.1:9/AnimalFace-dog.zip cannot be fetched (no connection" in shown.err
    assert shown.err.count("\n") == 1


def test_a_page_in_the_files_place_has_no_size_to_tell(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source.tells_size = False
    assert run_cli(monkeypatch, *fit(DOG, "--set", "selection.pool=2")) == 2
    assert "  size     unknown: the server does not say\n" in capsys.readouterr().out
    assert len(source.asked) == 1


def test_a_fit_whose_download_broke_off_goes_on_when_called_again(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    source.breaks_off = [CHUNK, CHUNK, CHUNK]
    assert run_cli(monkeypatch, *fit()) == 2
    assert "run the same command again, which continues where it stopped" in capsys.readouterr().err
    assert run_cli(monkeypatch, *fit()) == 0
    assert source.asked[-1] == f"bytes={3 * CHUNK}-"


def test_ctrl_c_while_fetching_keeps_what_has_arrived(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    source.stalls_at = 3 * CHUNK + 5
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        program(*fit(DOG, "--set", "selection.pool=2")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        wait_for_part(2 * CHUNK)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = "what has arrived is kept in datasets/.archives, and the same command goes on from there."
    assert error == f"\nStopped: {kept}\n"
    arrived = PART.stat().st_size
    assert arrived >= 2 * CHUNK
    source.stalls_at = None
    assert run_cli(monkeypatch, *fit(DOG, "--set", "selection.pool=2")) == 2
    assert source.asked == ["bytes=0-", f"bytes={arrived}-"]
    assert len(list_images(FOLDER)) == 3


@pytest.mark.slow
def test_of_several_processes_one_fetches_and_the_others_wait(source: Source) -> None:
    source.stalls_at = 3 * CHUNK
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "imletriton"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*torchrun, *fit()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        wait_for_part(2 * CHUNK)
        source.go_on.set()
        shown, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert shown.count(b"They can be fetched") == shown.count(b"Done. runs/dog-001") == 1
    assert source.asked == ["bytes=0-"]


def test_from_python_nothing_is_fetched(source: Source) -> None:
    with pytest.raises(InputError, match=r"is not a folder: `imletriton data get dog` fetches it\."):
        imletriton.fit(Recipe.load(DOG, TINY), device="cpu")
    assert not source.asked


def wait_for_part(size: int) -> None:
    for _ in range(1200):
        if PART.exists() and PART.stat().st_size >= size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{PART} did not arrive")
