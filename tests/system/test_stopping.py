"""Ctrl-C before training ends the program at once, with a sentence, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

# The program, in which Ctrl-C is pressed when a module is about to be imported.
INTERRUPTED = """
import signal, sys
class Presses:
    module = sys.argv.pop()
    def find_spec(self, name, path, target=None):
        if name == self.module:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Presses())
from imletriton.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("typer", "Stopped."),
        ("tomllib", "Stopped: nothing was started."),
        ("numpy._core.multiarray", "Stopped: nothing was started."),
        ("torchvision", "Stopped: nothing was started."),
    ],
)
def test_ctrl_c_at_the_start_says_that_nothing_was_started(
    recipe_file: Path, tmp_path: Path, module: str, sentence: str
) -> None:
    fit = ["fit", str(recipe_file), "--set", "distance.kind=lpips", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *fit, module], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\n{sentence}\n")
    assert {p.name for p in tmp_path.iterdir()} == {recipe_file.name}
