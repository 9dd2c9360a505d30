"""What training takes of memory, counted from the recipe alone: too much is refused before anything large is built."""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from imletriton.data import count_points
from imletriton.errors import InputError
from imletriton.generator.blocks import parse_blocks
from imletriton.recipe import Recipe
from imletriton.system.memory import free_memory, has_cuda_driver, size

# On a CPU, in bytes at most; on a GPU, each of the two is a quarter of what is free.
CHUNK_BYTES = 512 * 2**20  # of images and embeddings of a chunk of a pool, unless four samples take more
TARGET_BYTES = 2**30  # of what the loss compares of all data points
BATCH = 16  # samples or data points that are made, embedded or compared at once outside of steps
NEWEST = 4608  # latents whose misalignment is measured
FID_BYTES = 2048 * 28  # of a sample's features while the FID is computed: in float32, and thrice in float64
UNITS = {"generator.blocks": " at each resolution", "data.resolution": ", where generator.blocks must end too"}


class Network(NamedTuple):
    """What a distance takes: a number of weights, and floating-point numbers for each pixel of an image."""

    weights: int
    kept: int  # for the backward pass
    embedding: int
    largest: int  # the largest part of the embedding
    beyond: int = 0  # what the loss compares besides the embedding


NETWORKS = {
    "vgg": Network(14_714_688, 613, 125, 64),
    "alex": Network(2_469_696, 40, 13, 6),
    "squeeze": Network(722_496, 163, 35, 16),
    "pixels": Network(0, 8, 4, 3),
    "bands": Network(0, 22, 4, 3),
    "bands and untrained": Network(93_024, 60, 4, 3, 14),
    "bands and efficientnet": Network(54_048, 190, 4, 3, 7),
    "euclidean": Network(0, 8, 3, 3),
}


class Room(NamedTuple):
    """Bytes of memory: what is needed, or what is free."""

    main: int  # while data and networks are prepared, in the machine's memory
    device: int  # while training runs, in the memory of the GPU, or on a CPU in that of the machine


def step_memory(recipe: Recipe, bfloat16: bool, batch: int | None = None) -> int:
    """Count the bytes that training steps take on the device, without data and pool.

    Args:
        recipe: The recipe.
        bfloat16: Whether networks multiply in bfloat16.
        batch: Data points in a step of this process, by default the recipe's.
    """
    generator, network, pixels = recipe.generator.cost(bfloat16), _network(recipe), math.prod(recipe.data.shape) / 3
    weights = (20 + 4 * bfloat16) * generator.weights + 4 * network.weights  # and gradients, moments, averages
    sample = generator.kept + generator.working + 4 * network.kept * pixels
    return int(weights + (batch or recipe.train.batch_size) * (sample + 32))


def needed(recipe: Recipe, n: int, bfloat16: bool, processes: int = 1) -> Room:
    """Count the memory that training takes.

    Args:
        recipe: The recipe.
        n: The number of data points.
        bfloat16: Whether networks multiply in bfloat16.
        processes: How many share a batch.
    """
    generator, network, values = recipe.generator.cost(bfloat16), _network(recipe), math.prod(recipe.data.shape)
    pixels, latent, m = values / 3, 4 * recipe.generator.latent_dim, recipe.selection.pool_size(n)
    searched = values if recipe.distance.search == "pixels" else network.embedding * pixels
    largest = values if recipe.distance.search == "pixels" else network.largest * pixels
    projected = recipe.distance.projection_dim < searched
    features = 4 * min(recipe.distance.projection_dim, searched)

    reading = 3 * n * values
    projection = 40 * largest * projected  # while it is made; of each coordinate a good byte stays
    fid = recipe.log.fid_samples * FID_BYTES if recipe.log.fid_every else 0
    main = max(reading + projection + 4 * network.kept * pixels, fid)

    copies = 16 * generator.weights  # for a moment, at the start and from a checkpoint: of all but the gradients
    targets = min(TARGET_BYTES, 4 * n * (network.embedding + network.beyond) * pixels)
    data = n * (values + 3 * latent + features) + targets
    pool = m * features
    selection = 2 * NEWEST * latent + 1.3 * searched * projected
    batch = -(-recipe.train.batch_size // processes)
    comparing = BATCH * (2 * network.kept + 8 * network.embedding) * pixels
    drawing = min(CHUNK_BYTES, 256 * (generator.working + 4 * network.embedding * pixels))
    beside = max(comparing, BATCH * generator.working, drawing) - batch * generator.kept  # not at once
    device = copies + data + pool + selection + step_memory(recipe, bfloat16, batch) + max(0, beside)
    return Room(int(main), int(device))


def _network(recipe: Recipe) -> Network:
    distance = recipe.distance
    if distance.kind == "bands" and distance.network_weight:
        network = NETWORKS[f"bands and {distance.network}"]
        if distance.network == "efficientnet" and min(recipe.data.shape[1:]) < 64:  # it sees these enlarged
            network = network._replace(kept=4 * network.kept, beyond=4 * network.beyond)
        return network
    return NETWORKS[distance.backbone if distance.kind == "lpips" else distance.kind]


def check_memory_early(recipe: Recipe, device: str | None) -> None:
    """Check that a recipe fits into memory where it can only be trained on a CPU, without loading PyTorch.

    Raises:
        InputError: It takes more than is free even in bfloat16; see `check_memory`.
    """
    if device == "cpu" or (device is None and not has_cuda_driver()):
        check_memory(recipe, bfloat16=recipe.train.precision != "float32")


def check_memory(recipe: Recipe, bfloat16: bool, processes: int = 1, gpu: int | None = None) -> None:
    """Check that a recipe fits into the memory that is free.

    Args:
        recipe: The recipe.
        bfloat16: Whether networks multiply in bfloat16.
        processes: How many train together.
        gpu: Bytes that are free on the GPU; None on a CPU.

    Raises:
        InputError: It takes more. The message names the keys that cost the most, and how much of them would fit.
    """
    n = count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout)
    main = free_memory()
    free = Room(main, main if gpu is None else gpu)

    def excess(changed: Recipe) -> tuple[float, int]:
        """How many times what is free is needed, and of which memory: 0 for the machine's, 1 for the device's."""
        needs = needed(changed, n, bfloat16, processes)
        return max((need / max(1, room), which) for which, (need, room) in enumerate(zip(needs, free, strict=True)))

    times, which = excess(recipe)
    if times > 1:
        takes, room = (size(room[which]) for room in (needed(recipe, n, bfloat16, processes), free))
        memory = "GPU memory" if which and gpu is not None else "memory"
        raise InputError(
            f"Training {recipe.name!r} takes about {takes} of {memory}, and {room} are free here: "
            f"{_mend(recipe, n, lambda changed: excess(changed)[0])}."
        )


def check_fid_memory(n: int) -> None:
    """Check that the features of n samples fit into the memory that is free.

    Raises:
        InputError: They do not; the message says how many would.
    """
    if n * FID_BYTES > (free := free_memory()):
        raise InputError(
            f"FID and KID of {n} samples take about {size(n * FID_BYTES)} of memory, and {size(free)} are free here: "
            f"lower `n` to {free // FID_BYTES}."
        )


def _mend(recipe: Recipe, n: int, excess: Callable[[Recipe], float]) -> str:
    """Say which keys to lower: those that save the most, and how much of one of them would fit."""

    def excess_at(key: str) -> Callable[[int], float]:
        return lambda value: excess(_changed(recipe, key, value))

    lower = {key: values for key, values in _lower_values(recipe, n) if values}
    least = {key: excess_at(key)(values[0]) for key, values in lower.items()}
    # Those that suffice alone come first; of these, a resolution or the number of blocks is the last to give up.
    best = sorted(least, key=lambda key: (least[key] > 1, least[key] <= 1 and key in UNITS, least[key]))[:2]
    most = {key: _largest(lower[key], excess_at(key)) for key in best if least[key] <= 1}
    fitting = " or ".join(f"{key} to {value}{UNITS.get(key, '')}" for key, value in most.items())
    return f"lower {fitting or ' and '.join(best)}"


def _largest(values: Sequence[int], excess: Callable[[int], float]) -> int:
    """The largest of ascending values that fits, to two digits, as this is an estimate; the first one does fit."""
    value = values[bisect_right(values, 1.0, key=excess) - 1]
    unit = 10 ** max(0, len(str(value)) - 2)
    return max(value // unit * unit, values[0]) if isinstance(values, range) else value


def _lower_values(recipe: Recipe, n: int) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield the keys that cost memory, each with the lower values that it could have, in ascending order."""
    yield "selection.pool", range(n, recipe.selection.whole_pool(n))
    yield "train.batch_size", range(1, recipe.train.batch_size)
    yield "distance.projection_dim", range(1, recipe.distance.projection_dim)
    if recipe.log.fid_every:
        yield "log.fid_samples", range(2, recipe.log.fid_samples)
    keys = recipe.generator.model_dump()
    for key in ("latent_dim", "mapping_layers", "width"):
        if key in keys:
            yield f"generator.{key}", range(1, keys[key])
    if "blocks" in keys:
        blocks, least = parse_blocks(keys["blocks"]), max(4, recipe.distance.least_resolution)
        yield "generator.blocks", range(1, max(Counter(block.resolution for block in blocks).values()))
        sides = {block.resolution * keys.get("patch", 1) for block in blocks}
        yield "data.resolution", sorted(side for side in sides if side >= least)[:-1]


def _changed(recipe: Recipe, key: str, value: int) -> Recipe:
    """The recipe with a lower value of a key; blocks are repeated so often at most, or end at a lower resolution."""
    changes: dict[str, Any] = {key: value}
    if key in ("generator.blocks", "data.resolution"):
        keys = recipe.generator.model_dump()
        items = re.findall(r"(\d+)([xm])(\d+)", keys["blocks"])
        if key == "generator.blocks":
            items = [(a, kind, min(int(b), value) if kind == "x" else b) for a, kind, b in items]
        else:
            items = [item for item in items if int(item[0]) * keys.get("patch", 1) <= value]
        changes |= {"generator.blocks": ",".join(f"{a}{kind}{b}" for a, kind, b in items)}
    for name, new in changes.items():
        section, _, last = name.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={last: new})})
    return recipe
