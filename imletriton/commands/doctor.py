"""What this machine can train, and what is missing: `imletriton doctor`."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from imletriton.errors import InputError
from imletriton.recipe import RECIPES, Recipe
from imletriton.runs.run import RUNS
from imletriton.system.device import device_name
from imletriton.system.memory import GIB
from imletriton.training.memory import step_memory

if TYPE_CHECKING:
    from imletriton.search.self_check import Check

State = Literal["good", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    state: State  # missing: something must be installed or downloaded first; broken: training would fail
    detail: str


def examine(recipes: Path = RECIPES, datasets: Path = Path("datasets")) -> Iterator[Finding]:
    """Examine the GPU, Triton, the search, the disk, weights, data sets and recipes.

    Args:
        recipes: The folder of the recipes; by default those that come with imletriton.
        datasets: The folder of the papers' data sets.

    Yields:
        The findings, each as soon as it is known.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = _checked("GPU", lambda: _gpu(device))
    yield gpu if device.type == "cuda" or gpu.state == "broken" else Finding("GPU", "missing", gpu.detail)
    if gpu.state != "broken":
        yield _checked("search", lambda: _search(device))
        yield _checked("precision", lambda: _precision(device))
    yield _checked("disk", _disk)
    yield from _weights()
    yield from _datasets(datasets)
    yield from _recipes(
        recipes, torch.cuda.mem_get_info()[1] if device.type == "cuda" and gpu.state == "good" else None
    )


def _checked(subject: str, check: Callable[[], str]) -> Finding:
    """Run a check that training depends on; an exception in it is the finding."""
    try:
        return Finding(subject, "good", check())
    except Exception as error:  # the driver, the compiler and the disk each raise their own
        reason = str(error).splitlines()[0] if str(error) else "failed"
        return Finding(subject, "broken", f"{type(error).__name__}: {reason}")


def _gpu(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = f"{total / GIB:.0f} GiB, {free / GIB:.0f} free"
        count = f"{torch.cuda.device_count()} x " if torch.cuda.device_count() > 1 else ""
        return f"{count}{device_name(device)}, {memory}, {_driver()}, torch {torch.__version__}"
    why = "this build of PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no NVIDIA GPU"
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"
    cores = f"{torch.get_num_threads()} threads, {memory}, torch {torch.__version__}"
    return f"{why} ({_driver()}); small recipes train on the CPU: {device_name(device)}, {cores}"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver found"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    versions = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return f"driver {versions[0]}" if versions else "no NVIDIA driver answers"


class DisagreementError(Exception):
    """The device does not compute what float64 does."""


def checks() -> dict[str, "Check"]:
    """Return the checks of a device against float64: those of the search, and of the features that are searched."""
    from imletriton.search.self_check import CHECKS

    return CHECKS | {"sketches of features": check_sketches}


def check_sketches(device: torch.device) -> str:
    """Project a layer's unit features, which adds up each coordinate, with its sign, in its bucket: what is wrong."""
    from imletriton.distance.feature_ops import sketched_features
    from imletriton.distance.projection import CountSketch

    generator = torch.Generator().manual_seed(0)
    layer, weight = (torch.rand(shape, generator=generator) for shape in ((3, 12, 9, 7), (12,)))
    layer[0, :, 2, 3] = 0  # a position where nothing fires
    sketch = CountSketch(12 * 9 * 7, 50, seed=3, row=48)
    found = sketched_features(layer.to(device), weight.to(device), sketch.to(device)).double().cpu()
    flat = layer.double().permute(0, 2, 3, 1)
    units = flat / flat.square().sum(3, keepdim=True).sqrt().clamp_min(1e-10) * weight
    sketch, i = sketch.cpu(), torch.arange(sketch.dim)
    bucket = (i % sketch.row + sketch.shift[i // sketch.row]) % sketch.out_dim
    expected = torch.zeros(3, 50, dtype=torch.float64).index_add_(1, bucket, units.flatten(1) * sketch.sign)
    error = (found - expected).abs().max() / expected.abs().max()
    return "" if error <= 1e-5 else f"off by {error:.0e}"


def _search(device: torch.device) -> str:
    """Compile the kernels that the device has, and compare what they compute with float64."""
    from imletriton.search.self_check import run_check

    found = {name: run_check(check, device) for name, check in checks().items()}
    wrong = [f"{name}: {what}" for name, what in found.items() if what]
    engine = "the CPU's search"
    if device.type == "cuda":
        engine = f"Triton {version('triton')} on {device_name(device)}, {_driver()}"
    sentence = f"{engine}: {len(found) - len(wrong)} of {len(found)} checks agree with float64"
    if wrong:
        raise DisagreementError("; ".join([sentence, *wrong]))
    return sentence


def _precision(device: torch.device) -> str:
    from imletriton.system.device import wants_bfloat16

    return f'train.precision = "auto" takes {"bfloat16" if wants_bfloat16("auto", device) else "float32"} here'


def _disk() -> str:
    folder = RUNS if RUNS.is_dir() else Path()
    probe = folder / ".imletriton-doctor"
    probe.write_bytes(b"x")
    probe.unlink()
    return f"{RUNS}/ can be written, {shutil.disk_usage(folder).free / GIB:.0f} GiB free"


def _weights() -> Iterator[Finding]:
    from imletriton.distance.weights import damaged, sources, weights_file

    purpose = {"vgg": "LPIPS, precision and recall", "inception": "FID and KID"}
    for network, use in purpose.items():
        file = weights_file(network)
        if not file.is_file():
            detail = f"for {use}: downloaded on first use; offline, put {sources()[network]} at {file}"
            yield Finding(f"{network} weights", "missing", detail)
        elif damaged(network):
            yield Finding(f"{network} weights", "missing", f"{file} is damaged: remove it, and it is downloaded again")
        else:
            yield Finding(f"{network} weights", "good", f"{file}, for {use}")


def _datasets(datasets: Path) -> Iterator[Finding]:
    from imletriton.data.catalogue import KNOWN
    from imletriton.data.files import holds_images

    here = [name for name, known in KNOWN.items() if holds_images(datasets / known.folder)]
    missing = [name for name in KNOWN if name not in here]
    if here:
        yield Finding("data sets", "good", f"{', '.join(here)} in {datasets}/")
    if missing:
        detail = f"{', '.join(missing)}: see `imletriton data list`; a folder of your own needs none"
        yield Finding("data sets", "missing", detail)


def _load(file: Path) -> Recipe:
    """Load a recipe; one for pictures of one's own, which names none, with any others."""
    with contextlib.suppress(InputError):
        return Recipe.load(file)
    return Recipe.load(file, {"data.source": "faces"})


def _recipes(folder: Path, room: int | None) -> Iterator[Finding]:
    """Which recipes fit into the GPU's memory, of `room` bytes; recipes that train the same network share a line."""
    files = sorted(folder.rglob("*.toml"), key=lambda file: (len(file.parts), file))  # those in subfolders last
    if not files:
        yield Finding("recipes", "missing", f"none in {folder}/: install imletriton again")
    alike: dict[str, list[Recipe]] = {}
    for file in files:
        try:
            recipe = _load(file)
        except InputError as error:
            yield Finding("recipes", "missing", str(error))
            continue
        network = f"{recipe.generator!r} {recipe.distance.kind} {recipe.distance.backbone} {recipe.train.batch_size}"
        alike.setdefault(network, []).append(recipe)
    for recipes in alike.values():
        size, names = step_memory(recipes[0], bfloat16=False), ", ".join(recipe.name for recipe in recipes)
        detail = f"{names}: a step takes {max(1, size // 2**20):,} MiB in float32"
        if room is not None and size > room:
            yield Finding("recipes", "missing", f"{detail}, more than the GPU has: lower train.batch_size")
        else:
            yield Finding("recipes", "good", detail)
