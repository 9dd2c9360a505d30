"""However the package is installed, all of it is there, with kernels/ and recipes/, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PARTS = ("imletriton", "kernels", "recipes", "tests", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
RECIPES = [str(file.relative_to(ROOT / "recipes").with_suffix("")) for file in (ROOT / "recipes").rglob("*.toml")]
# Run without the editable install that these tests themselves run from. argv: its root; a folder of .pth files, or "";
# the names of the recipes.
PROGRAM = """
import importlib.util, site, sys
from pathlib import Path
sys.path = [entry for entry in sys.path if Path(entry) != Path(sys.argv[1])]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
if sys.argv[2]:
    for name in [name for name in sys.modules if name.startswith("__editable__")]:
        del sys.modules[name]
    sys.path.insert(0, sys.argv[2])
    site.addsitedir(sys.argv[2])
import imletriton, imletriton.kernels.launch
from imletriton.commands import report
assert imletriton.nearest.__name__ == "nearest"
assert (Path(report.__file__).parent / "report.html").is_file()
assert (Path(imletriton.__file__).parent / "py.typed").is_file()
from imletriton.recipe import RECIPES, packaged_recipes
assert RECIPES.parent == Path(imletriton.__file__).parent
assert {*packaged_recipes()} == set(sys.argv[3].split()), packaged_recipes()
assert imletriton.Recipe.load("adaptive/dog").name == "dog-adaptive"
for name in ("tests", "benchmarks", "imletriton"):  # a module that can be imported by two names exists twice
    assert importlib.util.find_spec(f"imletriton.{name}") is None, name
print(imletriton.__file__)
print(Path(imletriton.kernels.launch.__file__).resolve())
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "results")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a wheel, sdist or editable of a checkout by its build backend, as pip and uv do; returns the file."""
    program = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def unpacked(file: Path, folder: Path) -> Path:
    if file.suffix == ".whl":
        zipfile.ZipFile(file).extractall(folder)
        return folder
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def run(path: Path | None, elsewhere: Path, pth: str = "") -> tuple[Path, Path]:
    """Where the package and its kernels come from, in a process that has `path` on PYTHONPATH and stands elsewhere."""
    env = os.environ | {"PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), pth, " ".join(RECIPES)],
        cwd=elsewhere,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package, launch = done.stdout.splitlines()
    return Path(package).parent, Path(launch).parent


def test_a_checkout_on_pythonpath_is_whole(checkout: Path, tmp_path: Path) -> None:
    assert run(checkout, tmp_path) == (checkout / "imletriton", checkout / "kernels")


def test_a_wheel_is_whole(checkout: Path, tmp_path: Path) -> None:
    wheel = build(checkout, "wheel", tmp_path)
    assert {Path(name).parts[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"imletriton"}
    site = unpacked(wheel, tmp_path / "site")
    assert run(site, tmp_path) == (site / "imletriton", site / "imletriton" / "kernels")


def test_an_sdist_is_whole_and_builds_the_same_wheel(checkout: Path, tmp_path: Path) -> None:
    source = unpacked(build(checkout, "sdist", tmp_path), tmp_path / "source")
    assert run(source, tmp_path)[0] == source / "imletriton"
    (tmp_path / "again").mkdir()
    wheels = build(source, "wheel", tmp_path / "again"), build(checkout, "wheel", tmp_path)
    names = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]


def test_an_editable_install_is_the_checkout(checkout: Path, tmp_path: Path) -> None:
    site = unpacked(build(checkout, "editable", tmp_path), tmp_path / "site")
    assert run(None, tmp_path, str(site)) == (checkout / "imletriton", checkout / "kernels")
