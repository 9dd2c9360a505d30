"""Imports point one way, as docs/architecture.md draws them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imletriton"
# From the bottom up: a module imports from lower lines and from its own package only.
LAYERS = [
    ["errors", "kernels"],
    ["system"],
    ["search", "runs"],
    ["data", "distance", "generator", "selection"],
    ["sections"],
    ["recipe", "metrics", "plotting"],
    ["training"],
    ["share"],
    ["commands"],
    ["console"],
    ["messages", "tables"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")})  # rglob does not follow links
FILES.remove(PACKAGE / "__init__.py")  # names what is public


def module_of(file: Path) -> str:
    return ".".join(("imletriton", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(file) for file in FILES}


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The package's modules that a file imports, in functions and for type checking too; and whether when loaded."""
    tree = ast.parse(file.read_text())
    at_top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        else:
            continue
        for name in names:
            if name.startswith("imletriton."):
                yield name, id(node) in at_top


def unit(module: str) -> str:
    """The file or package at the root of imletriton/ that a module is, or is in."""
    return module.split(".")[1]


def test_every_file_and_package_has_its_layer() -> None:
    assert {unit(module_of(file)) for file in FILES} == RANK.keys()


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_import_points_up(file: Path) -> None:
    mine = unit(module_of(file))
    up = {name for name, _ in imports(file) if unit(name) != mine and RANK[unit(name)] >= RANK[mine]}
    assert not up


def test_no_modules_import_each_other_in_a_circle() -> None:
    remaining = {module_of(file): {name for name, top in imports(file) if top} & MODULES for file in FILES}
    while free := [module for module, needs in remaining.items() if not needs - {module} & remaining.keys()]:
        for module in free:
            del remaining[module]
    assert not remaining


def test_kernels_know_tensors_only() -> None:
    for file in (PACKAGE / "kernels").glob("*.py"):
        assert {unit(name) for name, _ in imports(file)} <= {"kernels"}, file
