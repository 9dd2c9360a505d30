import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from imletriton.commands.fit import fit
from imletriton.generator import Generator
from imletriton.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def install_example(install: Callable[..., None]) -> Callable[[str], None]:
    """Takes a page's module and its entry point, and installs them as a package."""

    def install_from(page: str) -> None:
        text = (ROOT / "docs" / page).read_text()
        (code,), (toml,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "toml"))
        project = tomllib.loads(toml)["project"]
        entries = {group.removeprefix("imletriton."): points for group, points in project["entry-points"].items()}
        install(project["name"], code, **entries)

    return install_from


def test_the_guides_strategy_works_as_written(
    install_example: Callable[[str], None], recipe_file: Path, tmp_path: Path
) -> None:
    install_example("strategies.md")
    recipe = Recipe.load(recipe_file, {"selection.strategy": "coin-toss", "selection.heads": 0.5})
    run = fit(recipe, tmp_path / "run", device="cpu")
    log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    lucky = [line["luckiest"] for line in log]
    assert lucky == sorted(lucky)
    assert 6 <= lucky[-1] <= 15  # of 15 epochs
    assert 0.2 < log[-1]["refreshed"] < 0.8


def test_the_guides_mapping_works_as_written(install_example: Callable[[str], None], tmp_path: Path) -> None:
    install_example("extending.md")
    overrides = {"generator.mapping": "fourier", "generator.frequencies": 32, "train.iterations": 20, "log.every": 10}
    run = fit(Recipe.load(ROOT / "recipes/toy2d.toml", overrides), tmp_path / "run", device="cpu")
    generator = Generator.from_pretrained(run.path)
    assert generator.mapping.style_dim == 64
    assert generator.sample(5).shape == (5, 2)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
