"""From a folder of pictures and a time to a recipe: what `imletriton fit path/to/pictures` trains."""

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import torch

from imletriton.data import count_points
from imletriton.data.files import list_training_images
from imletriton.data.folder import sizes
from imletriton.distance.weights import fetch_weights
from imletriton.errors import InputError
from imletriton.generator.blocks import MAX_RESOLUTION, auto_blocks
from imletriton.recipe import Recipe
from imletriton.system import torchrun
from imletriton.system.device import choose_device, device_name, free_gpu_memory, set_up, wants_bfloat16
from imletriton.system.registry import MANY, shown
from imletriton.training.build import build
from imletriton.training.memory import check_memory
from imletriton.training.pace import Pace, in_words, measure_pace
from imletriton.training.watch import SAMPLES

MAX_MINUTES = 366 * 24 * 60  # that a training may take


MINUTES = {"cpu": 30.0, "cuda": 120.0}  # where nothing else is asked for
MEASURED = 64  # pictures, of noise, that the speed is measured with at most; it does not depend on what they show
FEWEST = 50  # steps that are worth a start
STARTING = 6.0  # seconds from the plan to the first pool, beyond what building the trainer takes
ROUNDS = 20  # selections that a run should have, if it can
SELECTING = 1 / 3  # of the time, at most, for pools and searches
REJECTING = 2000  # steps of 16 pictures from which a rejection radius pays (docs/strategies.md, 41 photographs)

# What suits a CPU, much as in recipes/photos64.toml; and the settings of recipes/dog.toml, which suit a card.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "generator": {
            "latent_dim": 64,
            "mapping_layers": 2,
            "blocks": "auto",
            "patch": 2,
            "depth": 2,
            "bottleneck": 1.0,
            "start": "style",
            "upsampling": "bilinear",
        },
        "distance": {"kind": "bands", "network": "efficientnet", "network_weight": 0.12},
        "selection": {"epsilon": "auto"},
        "train": {"calibrate": True, "batch_size": 16, "warmup": 50},
    },
    "cuda": {
        "generator": {"latent_dim": 1024, "mapping_layers": 8, "blocks": "auto", "depth": 4},
        "distance": {"kind": "lpips", "search": "pixels", "normalize": True},
        "selection": {"epsilon": 0.15},
        "train": {"calibrate": True, "batch_size": 4, "warmup": 10},
    },
}


class Size(NamedTuple):
    """A size of pictures and network, and the steps without which a smaller one gives more."""

    resolution: int
    width: int
    learning_rate: float
    enough: int


SIZES = {
    "cpu": [Size(64, 64, 2e-3, 8000), Size(64, 32, 3e-3, 3000), Size(32, 32, 3e-3, 0)],
    "cuda": [Size(256, 384, 2e-4, 50_000), Size(128, 384, 2e-4, 0)],
}


class Plan(NamedTuple):
    """What will be trained, and for how long."""

    recipe: Recipe
    minutes: float
    lines: list[str]  # five, for people


class _Measured(NamedTuple):
    """A recipe that still lacks its steps, and how fast it is here."""

    recipe: Recipe
    values: dict[str, Any]
    n: int  # data points
    pace: Pace  # with a pool of the recipe's size
    weights: int
    left: float  # seconds for pools and steps

    @property
    def sample(self) -> float:
        """Seconds for a sample and its search features."""
        return self.pace.pool / self.recipe.selection.whole_pool(self.n)


def plan(
    folder: str | Path,
    minutes: float | None = None,
    resolution: int | None = None,
    device: str | torch.device | None = None,
    overrides: Mapping[str, Any] | None = None,
    note: Callable[[str], object] = lambda text: None,
    spent: float = 0.0,
) -> Plan:
    """Plan a training on pictures of one's own, for this machine: look at the pictures, and measure a few steps.

    Args:
        folder: The folder of pictures.
        minutes: The time until the end of the training, from this call; by default 30 on a CPU, 120 on a CUDA GPU.
        resolution: The side of the samples in pixels; by default as time and pictures allow.
        device: Where to train; see `fit`.
        overrides: Values of the recipe that are given, by section and key.
        note: Is told what happens.
        spent: The seconds of that time that have passed already.

    Returns:
        The plan. `fit(plan.recipe, minutes=...)` carries it out.

    Raises:
        InputError: The pictures cannot be used, or the time or the memory does not suffice.
    """
    began = time.perf_counter() - spent
    folder = Path(folder)
    check_plan(folder, minutes, resolution, overrides or {})
    chosen = choose_device(device)
    minutes = MINUTES[chosen.type] if minutes is None else minutes
    set_up(chosen)
    sides = [min(size) for size in sizes(folder, list_training_images(folder))]
    given = {key: value for key, value in (overrides or {}).items() if key != "data.resolution"}
    resolution = (overrides or {}).get("data.resolution", resolution)
    settings, reason = _settings(chosen.type, resolution)
    note(f"Measuring a few steps on {device_name(chosen)}.")

    def left() -> float:
        return 60 * minutes - (time.perf_counter() - began)

    for size, is_last in _candidates(chosen.type, median_low(sides), resolution):
        values = _values(folder, size, settings)
        try:
            measured = _measure(values, given, folder, chosen, left)
        except InputError:
            if is_last:
                raise
            continue
        if is_last or measured.left / measured.pace.step >= size.enough:
            break
    recipe, per_step = _scheduled(measured, given, folder)
    if (steps := recipe.train.iterations) < FEWEST:
        needed = math.ceil(10 * (60 * minutes - measured.left + 1.5 * FEWEST * per_step) / 60) / 10
        raise InputError(f"`minutes` of {minutes:g} leave no time to train here: give at least {needed:g}.")
    return Plan(recipe, minutes, _lines(recipe, measured, sides, minutes, chosen, reason, steps))


def _settings(kind: str, resolution: int | None) -> tuple[dict[str, dict[str, Any]], str]:
    """The settings for a kind of device, and why the distance is another one than would be best, if it is."""
    settings = {section: dict(values) for section, values in SETTINGS[kind].items()}
    if kind == "cpu":
        return settings, "which needs no download and is fast on a CPU"
    reason = ""
    if resolution is not None and resolution < 32:
        reason = "as LPIPS sees little in so small pictures"
    else:
        try:
            fetch_weights("vgg")
        except InputError:
            reason = "as the weights of VGG16, which LPIPS needs, cannot be downloaded here"
    if reason:
        settings["distance"]["kind"] = "bands"
    return settings, reason


def _candidates(kind: str, side: int, resolution: int | None) -> list[tuple[Size, bool]]:
    """The sizes to try, the best one first, and whether each is the last.

    Args:
        kind: The kind of device.
        side: The usual shorter side of the pictures: they are not enlarged by more than a third.
        resolution: The resolution that was asked for.
    """
    found = SIZES[kind]
    if resolution is not None:
        found = list({size.width: size._replace(resolution=resolution) for size in found}.values())
    else:
        found = [size for size in found if size.resolution <= 4 / 3 * side] or found[-1:]
    return [(size, size is found[-1]) for size in found]


def _values(folder: Path, size: Size, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of a recipe, apart from what the time decides."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")[:80] or "pictures"
    distance, generator = dict(settings["distance"]), settings["generator"] | {"width": size.width}
    if size.resolution < 64:  # where patches gain nothing, and the network draws no grid (docs/quality.md)
        generator.pop("patch", None)
        if "network" in distance:
            distance["network_weight"] = 0.3
    return {
        "name": name,
        "data": {"source": str(folder), "resolution": size.resolution},
        "generator": generator,
        "distance": distance,
        "selection": settings["selection"] | {"strategy": "rejection", "pool": "10n", "refresh": 30},
        "train": settings["train"] | {"learning_rate": size.learning_rate},
        "log": {},
    }


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}


def _measure(
    values: dict[str, Any], given: Mapping[str, Any], folder: Path, device: torch.device, left: Callable[[], float]
) -> _Measured:
    """Measure steps and a part of a pool of a recipe.

    Raises:
        InputError: The recipe is wrong, or does not fit into memory.
    """
    recipe = _checked(values, given, folder)
    n = count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout)
    values["train"]["batch_size"] = min(values["train"]["batch_size"], n)
    recipe = _checked(values, given, folder)
    check_memory(
        recipe,
        wants_bfloat16(recipe.train.precision, device),
        gpu=free_gpu_memory(device) if device.type == "cuda" else None,
    )
    began = time.perf_counter()
    noise = torch.randint(0, 256, (min(n, MEASURED), *recipe.data.shape), dtype=torch.uint8, generator=_seeded())
    trainer = build(recipe, noise, device)
    building = time.perf_counter() - began
    pace = measure_pace(trainer)
    pace = Pace(pace.step, pace.pool / trainer.pool.size * recipe.selection.whole_pool(n))
    weights = sum(weight.numel() for weight in trainer.weights)
    return _Measured(recipe, values, n, pace, weights, left() - building - STARTING)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _checked(values: dict[str, Any], given: Mapping[str, Any], folder: Path) -> Recipe:
    return Recipe.of(_copied(values), f"The plan for {folder}", given)


def _scheduled(measured: _Measured, given: Mapping[str, Any], folder: Path) -> tuple[Recipe, float]:
    """The recipe with all that time decides: pools, steps and the log; and the seconds a step with its share of all."""
    n, (step, _), sample = measured.n, measured.pace, measured.sample
    batch, values = measured.recipe.train.batch_size, measured.values
    seconds, per_epoch = max(0.0, measured.left), math.ceil(measured.n / batch)
    epoch = step * per_epoch
    for multiple in (10, 5, 2):
        pool = multiple * n * sample
        refresh = math.ceil(max(seconds / epoch / ROUNDS, (1 / SELECTING - 1) * pool / epoch))
        refresh = max(1, min(30, refresh))
        if pool <= SELECTING * (pool + refresh * epoch) and pool <= seconds / 10:
            break
    # Where one pool takes long, several smaller ones begin sooner and can end in time.
    rounds = max(1, min(refresh, multiple, math.ceil(pool / max(1e-9, 0.03 * seconds))))
    values["selection"] |= {"pool": f"{multiple}n", "refresh": refresh, "share": math.ceil(1e4 / rounds) / 1e4}
    per_step = 1.06 * (step + pool / (refresh * per_epoch))  # of which a twentieth is for sheets, checkpoints and log
    steps = min(MANY, int(seconds / per_step))
    if steps * batch < 16 * REJECTING:
        values["selection"]["strategy"] = "vanilla"
        values["selection"].pop("epsilon", None)
    steps = max(1, steps)
    every = max(1, steps // 10)
    ema = 1 - max(1e-4, min(1e-2, 10 / steps))
    values["train"] |= {"iterations": steps, "ema": round(ema, 4)}
    values["log"] = {
        "every": max(1, min(100, steps // 50)),
        "samples_every": every,
        "checkpoint_every": every,
        "measure_every": max(1, steps // 40, min(steps // 5, math.ceil(SAMPLES * sample / (0.03 * step)))),
    }
    return _checked(values, given, folder), per_step


def _lines(
    recipe: Recipe,
    measured: _Measured,
    sides: list[int],
    minutes: float,
    device: torch.device,
    reason: str,
    steps: int,
) -> list[str]:
    """The plan in five lines."""
    side, generator = recipe.data.resolution, recipe.generator.model_dump()
    smaller = sum(1 for found in sides if found < side)
    enlarged = f", {smaller} of them enlarged" if smaller else ""
    keys = {"width": "width {}", "latent_dim": "latent codes of {} numbers"}
    parts = ", ".join(text.format(generator[key]) for key, text in keys.items() if key in generator)
    because = f", {reason}" if reason and recipe.distance.kind != "lpips" else ""
    strategy = {"vanilla": "vanilla IMLE", "rejection": "RS-IMLE"}.get(recipe.selection.strategy)
    pool = recipe.selection.pool_size(measured.n)
    parameters = recipe.selection.parameters
    often = f", each picture anew every {parameters['refresh']} epochs" if "refresh" in parameters else ""
    threads = torch.get_num_threads()
    where = f"a CPU ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else device_name(device)
    return [
        f"pictures   {len(sides)} of {recipe.data.source}, at {side}x{side} pixels{enlarged}",
        f"network    {recipe.generator.decoder} with {measured.weights / 1e6:.2f} M weights: {parts}",
        f"distance   {recipe.distance.kind}{because}",
        f"selection  {strategy or recipe.selection.strategy}, from pools of {pool} samples{often}",
        f"training   {in_words(60 * minutes)} in all on {where}: about {steps} steps of {recipe.train.batch_size}",
    ]


def check_plan(folder: Path, minutes: float | None, resolution: int | None, overrides: Mapping[str, Any]) -> None:
    """Check what a plan is made of; the arguments are those of `plan`.

    Raises:
        InputError: The folder has too few pictures, a number is out of range, or a key is for the plan to decide.
    """
    if torchrun.processes() > 1:
        raise InputError(
            f"{folder} is a folder: several processes need a recipe, such as recipes/photos256.toml with "
            "`data.source=FOLDER`."
        )
    list_training_images(folder)
    check_minutes(minutes)
    if "train.iterations" in overrides or "data.source" in overrides:
        raise InputError(
            "The steps follow from `minutes`, and the pictures are those of the folder: leave out "
            "train.iterations and data.source, or name a recipe instead of the folder."
        )
    resolution = overrides.get("data.resolution", resolution)
    if resolution is not None:
        if type(resolution) is not int or not 4 <= resolution <= MAX_RESOLUTION:
            raise InputError(f"`resolution` must be from 4 to {MAX_RESOLUTION} pixels, not {shown(resolution)}.")
        try:
            auto_blocks(resolution, 1)
        except ValueError as error:
            raise InputError(f"`resolution`: {error}.") from error


def check_minutes(minutes: float | None) -> None:
    """Check the time that `fit` is given.

    Raises:
        InputError: It is no time, or longer than a year.
    """
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise InputError(f"`minutes` must be more than 0 and at most {MAX_MINUTES}, not {shown(minutes)}.")
