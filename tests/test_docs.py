import json
import re
import statistics
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from imletriton.commands.fit import fit
from imletriton.generator import Generator
from imletriton.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "recipes/README.md")]
PAGES += [ROOT / "tests/faults/README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_heading_that_a_page_links_to_exists(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), f"{target}#{heading}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("resolution", [32, 64])
def test_the_page_on_quality_shows_what_was_measured(resolution: int) -> None:
    found = json.loads((ROOT / f"benchmarks/results/quality-faces-{resolution}-trained.json").read_text())
    digits = {"frechet": 3, "precision": 3, "recall": 3, "near": 3, "trained_frechet": 1, "trained_recall": 3}
    compared = [run for run in found["runs"] if run["method"] == "rejection" or run["budget"] == "time"]
    page = (ROOT / "docs/quality.md").read_text()
    for is_base in (True, False):
        runs = [run for run in compared if (run["method"] == "rejection") == is_base]
        assert len(runs) == 5
        cells = []
        for key, places in digits.items():
            values = [run[key] for run in runs]
            cells.append(f"{statistics.fmean(values):.{places}f} ± {statistics.stdev(values):.{places}f}")
        assert f"| {' | '.join(cells)} |" in page
    true = {key: f"{found['floor']['others'][key]:.{places}f}" for key, places in digits.items()} | {"near": ""}
    assert f"| {' | '.join(true.values())} |".replace("|  |", "| |") in page
