import json
import re
import tomllib
from pathlib import Path

import pytest

from imletriton.commands.fit import fit
from imletriton.recipe import Recipe
from imletriton.selection import STRATEGIES

ROOT = Path(__file__).parents[1]


def test_the_guides_strategy_works_as_written(
    monkeypatch: pytest.MonkeyPatch, recipe_file: Path, tmp_path: Path
) -> None:
    """Its module and its entry point, taken from the page and laid out as an installer would."""
    page = (ROOT / "docs/strategies.md").read_text()
    (code,), (project,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "toml"))
    (tmp_path / "coin_toss.py").write_text(code)
    described = tomllib.loads(project)["project"]
    info = tmp_path / "coin_toss-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {described['name']}\nVersion: {described['version']}\n")
    [(group, entries)] = described["entry-points"].items()
    lines = "".join(f"{k} = {v}\n" for k, v in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)

    recipe = Recipe.load(recipe_file, {"selection.strategy": "coin-toss", "selection.heads": 0.5})
    run = fit(recipe, tmp_path / "run", device="cpu")
    del STRATEGIES["coin-toss"]
    log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    lucky = [line["luckiest"] for line in log]
    assert lucky == sorted(lucky)
    assert 6 <= lucky[-1] <= 15  # of 15 epochs
    assert 0.2 < log[-1]["refreshed"] < 0.8
