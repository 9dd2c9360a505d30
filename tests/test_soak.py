"""Thousands of steps take no more memory than hundreds: a run in a process of its own, watched by benchmarks.soak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imletriton.recipe import Recipe

WARM, STEPS, EVERY = 1000, 2500, 250
# As small as can be, with all that a run does: rounds of varying size, bfloat16, grids, checkpoints and their removal.
SMALL = {
    "data.resolution": 4,
    "generator.blocks": "4x1",
    "selection.strategy": "adaptive-rejection",
    "selection.epsilon": "auto",
    "selection.staleness": 2,
    "selection.forced_refresh": 5,
    "train.iterations": STEPS,
    "train.batch_size": 10,
    "train.precision": "bfloat16",
    "log.every": 25,
    "log.samples_every": 250,
    "log.checkpoint_every": 250,
    "log.keep": 1,
}
WATCHED_FIT = """
import json, sys, torch
from benchmarks.soak import Watch
from imletriton import Recipe, fit
torch.set_num_threads(1)
watch = Watch(every=int(sys.argv[3]))
fit(Recipe.load(sys.argv[1]), sys.argv[2], "cpu", reporter=watch)
print(json.dumps(watch.rows))
"""


@pytest.mark.slow
def test_nothing_grows_with_the_steps_of_a_run(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(Recipe.load(recipe_file, SMALL).to_toml())
    words = [sys.executable, "-c", WATCHED_FIT, str(recipe_file), str(tmp_path / "run"), str(EVERY)]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    print(*rows, sep="\n")  # shown where the test fails
    early, late = (
        [row for row in rows if 0 <= row["step"] - first <= 2 * EVERY] for first in (WARM, STEPS - 2 * EVERY)
    )
    for name in ("tensors", "open_files", "threads"):
        assert late[-1][name] <= early[0][name], name
    # Resident memory falls at every 2,000th scalar for TensorBoard: protobuf trims the heap. What is in use stays.
    resident, allocated = (
        max(row.get(name, 0) for row in late) - max(row.get(name, 0) for row in early)
        for name in ("memory_mb", "allocated_mb")
    )
    assert resident < 6  # MiB in a thousand steps
    assert allocated < 1
