"""A sample of the campaign; `make faults` does all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_sample_of_the_campaign_has_no_failure() -> None:
    """In a Python of its own: one that has trained already cannot be forked to train again."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])}
    env.pop("TRITON_INTERPRET", None)
    words = [sys.executable, str(HERE / "campaign.py"), "--share", "0.003", "--workers", "1"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    assert done.stdout.count("| 0 |") == 5  # kinds of faults, without a failure
