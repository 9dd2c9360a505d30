"""From a folder of pictures and a time to a recipe: what `imletriton fit path/to/pictures` trains."""

import gc
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
from imletriton.recipe import Recipe
from imletriton.system.device import device_name, set_up
from imletriton.system.registry import MANY
from imletriton.training.build import make_strategy
from imletriton.training.launch import Ready, prepare
from imletriton.training.pace import Pace, in_words
from imletriton.training.trainer import Trainer
from imletriton.training.watch import SAMPLES

MINUTES = {"cpu": 30.0, "cuda": 120.0}  # where nothing else is asked for
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
    ready: Ready  # the recipe's trainer, built and measured


def make_plan(
    folder: Path,
    minutes: float | None,
    resolution: int | None,
    device: torch.device,
    overrides: Mapping[str, Any],
    note: Callable[[str], object] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    spent: float = 0.0,
) -> Plan:
    """Plan a training on pictures of one's own, for this machine: build trainers, the best one first, and measure them.

    Args:
        folder: The folder of pictures.
        minutes: The time until the end of the training, from this call; by default 30 on a CPU, 120 on a CUDA GPU.
        resolution: The side of the samples in pixels; by default as time and pictures allow.
        device: Where to train.
        overrides: Values of the recipe that are given, by section and key.
        note: Called with sentences on what happens.
        progress: Called with the number of pictures decoded so far, and their total.
        spent: The seconds of that time that have passed already.

    Raises:
        InputError: The pictures cannot be used, or the time or the memory does not suffice.
    """
    began = time.perf_counter() - spent
    minutes = MINUTES[device.type] if minutes is None else minutes
    set_up(device)
    sides = [min(size) for size in sizes(folder, list_training_images(folder))]
    given = {key: value for key, value in overrides.items() if key != "data.resolution"}
    resolution = overrides.get("data.resolution", resolution)
    settings, reason = _settings(device.type, resolution)
    note(f"Reading the pictures, and measuring a few steps on {device_name(device)}.")

    ready: Ready | None = None
    for size, is_last in _sizes(device.type, median_low(sides), resolution):
        ready = None
        gc.collect()  # the trainer of the size before, which refers to itself
        try:
            recipe, values = _recipe(folder, size, settings, given)
            ready = prepare(recipe, device, progress=progress)
        except InputError:
            if is_last:
                raise
            continue
        left = 60 * minutes - (time.perf_counter() - began) - STARTING
        if is_last or left / ready.pace.step >= size.enough:
            break
    assert ready
    n, trainer = ready.trainer.n, ready.trainer
    sample = ready.pace.pool / trainer.pool.size
    scheduled, per_step = schedule(n, recipe.train.batch_size, ready.pace.step, sample, left)
    values = {
        key: value | scheduled.get(key, {}) if isinstance(value, dict) else value for key, value in values.items()
    }
    if scheduled["selection"]["strategy"] == "vanilla":
        values["selection"].pop("epsilon", None)
    recipe = _checked(values, given, folder)
    if (steps := recipe.train.iterations) < FEWEST:
        needed = math.ceil(10 * (60 * minutes - left + 1.5 * FEWEST * per_step) / 60) / 10
        raise InputError(f"`minutes` of {minutes:g} leave no time to train here: give at least {needed:g}.")
    pool = recipe.selection.pool_size(n)
    trainer.select_by(make_strategy(recipe, n), recipe.train, pool, recipe.selection.noise)
    ready = ready._replace(pace=Pace(ready.pace.step, sample * pool))
    return Plan(recipe, minutes, _lines(recipe, trainer, sides, minutes, reason, steps), ready)


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


def _sizes(kind: str, side: int, resolution: int | None) -> list[tuple[Size, bool]]:
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


def _recipe(
    folder: Path, size: Size, settings: dict[str, dict[str, Any]], given: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a size, apart from what the time decides, and its values before what is given."""
    values = _values(folder, size, settings)
    data = _checked(values, given, folder).data
    n = count_points(data.source, data.mirror, data.holdout)
    values["train"]["batch_size"] = min(values["train"]["batch_size"], n)
    return _checked(values, given, folder), values


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}


def _checked(values: dict[str, Any], given: Mapping[str, Any], folder: Path) -> Recipe:
    return Recipe.of(_copied(values), f"The plan for {folder}", given)


def schedule(n: int, batch: int, step: float, sample: float, seconds: float) -> tuple[dict[str, dict[str, Any]], float]:
    """Decide on pools, steps and the log by the time that there is.

    Args:
        n: The number of data points.
        batch: Data points in a step.
        step: Seconds for a step.
        sample: Seconds for a sample of a pool and its search features.
        seconds: The time for pools and steps.

    Returns:
        Values of a recipe by section and key, and the seconds for a step with its share of everything else.
    """
    seconds, per_epoch = max(0.0, seconds), math.ceil(n / batch)
    epoch = step * per_epoch
    for multiple in (10, 5, 2):
        pool = multiple * n * sample
        refresh = math.ceil(max(seconds / epoch / ROUNDS, (1 / SELECTING - 1) * pool / epoch))
        refresh = max(1, min(30, refresh))
        if pool <= SELECTING * (pool + refresh * epoch) and pool <= seconds / 10:
            break
    # Where one pool takes long, several smaller ones begin sooner and can end in time.
    rounds = max(1, min(refresh, multiple, math.ceil(pool / max(1e-9, 0.03 * seconds))))
    per_step = 1.06 * (step + pool / (refresh * per_epoch))  # of which a twentieth is for sheets, checkpoints and log
    steps = min(MANY, int(seconds / per_step))
    rejects = steps * batch >= 16 * REJECTING
    selection = {"pool": f"{multiple}n", "refresh": refresh, "share": math.ceil(1e4 / rounds) / 1e4}
    steps = max(1, steps)
    every = max(1, steps // 10)
    log = {
        "every": max(1, min(100, steps // 50)),
        "samples_every": every,
        "checkpoint_every": every,
        "measure_every": max(1, steps // 40, min(steps // 5, math.ceil(SAMPLES * sample / (0.03 * step)))),
    }
    train = {"iterations": steps, "ema": round(1 - max(1e-4, min(1e-2, 10 / steps)), 4)}
    selection["strategy"] = "rejection" if rejects else "vanilla"
    return {"selection": selection, "train": train, "log": log}, per_step


def _lines(recipe: Recipe, trainer: Trainer, sides: list[int], minutes: float, reason: str, steps: int) -> list[str]:
    """The plan in five lines."""
    side, generator = recipe.data.resolution, recipe.generator.model_dump()
    smaller = sum(1 for found in sides if found < side)
    enlarged = f", {smaller} of them enlarged" if smaller else ""
    keys = {"width": "width {}", "latent_dim": "latent codes of {} numbers"}
    parts = ", ".join(text.format(generator[key]) for key, text in keys.items() if key in generator)
    because = f", {reason}" if reason and recipe.distance.kind != "lpips" else ""
    strategy = {"vanilla": "vanilla IMLE", "rejection": "RS-IMLE"}.get(recipe.selection.strategy)
    pool = trainer.pool.size
    parameters = recipe.selection.parameters
    often = f", each picture anew every {parameters['refresh']} epochs" if "refresh" in parameters else ""
    threads, where = torch.get_num_threads(), device_name(trainer.device)
    if trainer.device.type == "cpu":
        where = f"a CPU ({threads} thread{'s' * (threads > 1)})"
    weights = sum(weight.numel() for weight in trainer.weights) / 1e6
    return [
        f"pictures   {len(sides)} of {recipe.data.source}, at {side}x{side} pixels{enlarged}",
        f"network    {recipe.generator.decoder} with {weights:.2f} M weights: {parts}",
        f"distance   {recipe.distance.kind}{because}",
        f"selection  {strategy or recipe.selection.strategy}, from pools of {pool} samples{often}",
        f"training   {in_words(60 * minutes)} in all on {where}: about {steps} steps of {recipe.train.batch_size}",
    ]
