"""What this machine can train, and what is missing: what `imletriton doctor` calls."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from imletriton.environment import device_name
from imletriton.errors import InputError
from imletriton.recipe import Recipe

GIB = 2**30
State = Literal["good", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination. missing: something cannot be done for now; broken: training would fail."""

    what: str
    state: State
    detail: str


def examine(recipes: Path = Path("recipes"), datasets: Path = Path("datasets")) -> Iterator[Finding]:
    """Look at the GPU, Triton, the search, the disk, weights, data sets and recipes, one finding at a time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield _device(device)
    yield _checked("search", lambda: _search(device))
    yield _precision(device)
    yield _checked("disk", _disk)
    yield from _weights()
    yield from _datasets(datasets)
    yield from _recipes(recipes, device)


def _checked(what: str, check: Callable[[], str]) -> Finding:
    """Run a check that training stands on: whatever fails in it is the finding."""
    try:
        return Finding(what, "good", check())
    except Exception as error:  # the driver's, the compiler's, the disk's: all are to be told
        return Finding(
            what, "broken", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'failed'}"
        )


def _device(device: torch.device) -> Finding:
    versions = f"torch {torch.__version__}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = f"{total / GIB:.0f} GiB, {free / GIB:.0f} free"
        count = f"{torch.cuda.device_count()} x " if torch.cuda.device_count() > 1 else ""
        return Finding("GPU", "good", f"{count}{device_name(device)}, {memory}, driver {_driver()}, {versions}")
    why = "this build of PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no NVIDIA GPU"
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"
    cores = f"{torch.get_num_threads()} threads, {memory}, {versions}"
    return Finding("GPU", "missing", f"{why}; small recipes train on the CPU: {device_name(device)}, {cores}")


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.splitlines()[0] if found.stdout else "unknown"


def _search(device: torch.device) -> str:
    """Compile the kernels, where there are any for the device, and see that they find what float64 finds."""
    from imletriton.nearest import nearest

    generator = torch.Generator().manual_seed(0)
    queries, pool = (torch.randn(k, 70, generator=generator) for k in (33, 500))
    expected = torch.cdist(queries.double(), pool.double()).argmin(1)
    if not torch.equal(nearest(queries.to(device), pool.to(device)).index.cpu(), expected):
        raise RuntimeError("the nearest neighbours found are not the nearest")
    if device.type == "cpu":
        return "exact on the CPU; Triton is for GPUs"
    return f"Triton {version('triton')} compiles the kernels, and they find the nearest neighbours"


def _precision(device: torch.device) -> Finding:
    from imletriton.trainer import wants_bfloat16

    if wants_bfloat16("auto", device):
        return Finding("bfloat16", "good", 'fast here: train.precision = "auto" uses it')
    return Finding("bfloat16", "missing", 'not fast here: train.precision = "auto" takes float32')


def _disk() -> str:
    probe = Path(".imletriton-doctor")
    probe.write_bytes(b"x")
    probe.unlink()
    return f"runs/ can be written, {shutil.disk_usage('.').free / GIB:.0f} GiB free"


def _weights() -> Iterator[Finding]:
    from imletriton.weights import sources, weights_file

    purpose = {"vgg": "LPIPS, precision and recall", "inception": "FID and KID"}
    for network, use in purpose.items():
        file = weights_file(network)
        if file.is_file():
            yield Finding(f"{network} weights", "good", f"{file}, for {use}")
        else:
            detail = f"for {use}: downloaded on first use; offline, put {sources()[network]} at {file}"
            yield Finding(f"{network} weights", "missing", detail)


def _datasets(datasets: Path) -> Iterator[Finding]:
    from imletriton.data.catalogue import KNOWN

    here = [name for name, known in KNOWN.items() if (datasets / known.folder).is_dir()]
    missing = [name for name in KNOWN if name not in here]
    if here:
        yield Finding("data sets", "good", f"{', '.join(here)} in {datasets}/")
    if missing:
        detail = f"{', '.join(missing)}: see `imletriton data list`; a folder of your own needs none"
        yield Finding("data sets", "missing", detail)


def _recipes(folder: Path, device: torch.device) -> Iterator[Finding]:
    """Which recipes fit into the GPU's memory; recipes that train the same network are told together."""
    alike: dict[str, list[Recipe]] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            recipe = Recipe.load(file)
        except InputError as error:
            yield Finding("recipes", "missing", str(error))
            continue
        network = f"{recipe.generator!r} {recipe.distance.kind} {recipe.distance.backbone} {recipe.train.batch_size}"
        alike.setdefault(network, []).append(recipe)
    room = torch.cuda.mem_get_info()[1] if device.type == "cuda" else None
    for recipes in alike.values():
        size, names = training_memory(recipes[0]), ", ".join(recipe.name for recipe in recipes)
        told = f"{names}: a step takes {size / 2**20:,.0f} MiB in float32"
        if room is not None and size > room:
            yield Finding("recipes", "missing", f"{told}, more than the GPU has: lower train.batch_size")
        else:
            yield Finding("recipes", "good", told)


def training_memory(recipe: Recipe) -> int:
    """Bytes that a step of a recipe takes in float32, pictures of data and pool aside: weights and what is kept for the
    backward pass, counted without computing anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from imletriton.distance import LPIPS, Distance, Euclidean
    from imletriton.generator import Generator

    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        generator = Generator(**recipe.generator.model_dump())
        d = recipe.distance
        distance: Distance = LPIPS(d.backbone, d.pixel_weight, False, 0) if d.kind == "lpips" else Euclidean()
        z = torch.zeros(recipe.train.batch_size, recipe.generator.latent_dim)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            samples = generator(z)
            distance.loss(samples, torch.zeros_like(samples))  # pixels keep about what Euclidean does
    parameters = sum(p.numel() for p in generator.parameters())
    networks = sum(p.numel() for p in distance.parameters())
    # Weights are among what is kept; besides: the gradients, AdamW's two moments, and the averaged weights.
    return sum(kept.values()) + 4 * (4 * parameters + networks)
