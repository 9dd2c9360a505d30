"""What several tests share: a recipe so small that a whole run takes a second."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is loaded: its kernels then run on CPU tensors

from imletriton.recipe import Recipe

TINY = """
name = "tiny"
[data]
source = "faces"
resolution = 16
[generator]
latent_dim = 8
mapping_layers = 1
width = 8
blocks = "4x1,8m4,16m8"
[distance]
kind = "pixels"
projection_dim = 64
[selection]
pool = "2n"
refresh = 4
[train]
iterations = 60
batch_size = 32
ema = 0.9
[log]
every = 10
samples_every = 30
checkpoint_every = 10
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return Recipe.load(recipe_file)
