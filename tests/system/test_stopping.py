"""What stops the program before training ends it at once, with a sentence, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture

# The program, to which a signal is sent when a module is about to be imported.
INTERRUPTED = """
import signal, sys
class Stops:
    number, module = signal.Signals[sys.argv.pop()], sys.argv.pop()
    def find_spec(self, name, path, target=None):
        if name == self.module:
            signal.raise_signal(self.number)
sys.meta_path.insert(0, Stops())
from imletriton.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "number", "sentence"),
    [
        ("typer", "SIGINT", "Stopped."),
        ("numpy._core.multiarray", "SIGINT", "Stopped: nothing was started."),
        ("torchvision", "SIGINT", "Stopped: nothing was started."),
        ("PIL.PngImagePlugin", "SIGTERM", "Stopped: nothing was started."),  # in a thread that decodes pictures
        ("tomllib", "SIGHUP", "Stopped: nothing was started."),
    ],
)
def test_a_signal_at_the_start_says_that_nothing_was_started(
    recipe_file: Path, tmp_path: Path, module: str, number: str, sentence: str
) -> None:
    fit = ["fit", str(recipe_file), "--set", "distance.kind=lpips", "--device", "cpu"]
    if module.startswith("PIL"):
        (tmp_path / "pictures").mkdir()
        for k in range(60):
            (tmp_path / f"pictures/{k}.png").write_bytes(picture(k))
        fit += ["--set", "data.source=pictures"]
    before = {*tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *fit, module, number], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, f"\n{sentence}\n")
    assert {*tmp_path.iterdir()} == before


def test_a_terminal_that_closes_does_not_stop_what_ignores_that(recipe_file: Path, tmp_path: Path) -> None:
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n{INTERRUPTED}"
    arguments = ["gen", "nosuch", "typer", "SIGHUP"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
