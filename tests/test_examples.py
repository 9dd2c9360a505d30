"""The examples run as scripts, in an empty folder and without a network, and say what their texts promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
LEAVES = {  # the pictures that each leaves
    "first_model": ["nearest.png", "samples.png"],
    "nearest_neighbours": [],
    "own_strategy": ["vanilla.png", "worst-first.png"],
}
SAYS = {
    "first_model": ["torch.Size([8, 3, 32, 32]) torch.uint8", "fid: ", "kid: "],
    "nearest_neighbours": ["imletriton finds 100%", "2xy finds 0%", "of 2000 samples may be selected"],
    "own_strategy": ["vanilla      distance of selected samples", "worst-first  distance of selected samples"],
}


def test_every_example_is_run_here() -> None:
    assert sorted(LEAVES) == sorted(SAYS) == sorted(file.stem for file in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAVES)
def test_an_example_runs_as_a_script(name: str, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[name]:
        assert words in done.stdout
    assert sorted(path.name for path in tmp_path.glob("*.png")) == LEAVES[name]
    for picture in LEAVES[name]:
        assert Image.open(tmp_path / picture).width > 100
