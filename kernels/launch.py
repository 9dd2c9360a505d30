"""How kernels are launched: tile sizes by the device and the shape of the work, and launchers that torch.compile knows.

To try another tile, replace an entry: `launch.SCAN["hopper"]["many"] = Tile(...)`.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Launcher = TypeVar("Launcher", bound=Callable[..., Any])


@dataclass(frozen=True)
class Tile:
    """One program multiplies block_m rows by block_n columns, block_k dimensions at a time.

    num_warps and num_stages (loads in flight) are Triton's launch options. The scan's block_n is 256 at most.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# "few": with so few rows, tiles of 128 would leave multiprocessors idle or half of the last tile empty.
# "shallow": with so few dimensions, the epilogue takes most of the time; two programs that share a multiprocessor hide
# it behind each other's products.
SCAN: dict[str, dict[str, Tile]] = {
    "hopper": {
        "few": Tile(64, 128, 64, 4, 4),
        "shallow": Tile(128, 128, 64, 4, 3),
        "many": Tile(128, 256, 64, 8, 3),
    },
    "ampere": {
        "few": Tile(64, 128, 64, 4, 3),
        "shallow": Tile(128, 128, 64, 8, 3),
        "many": Tile(128, 128, 64, 8, 3),
    },
    # Anything else: these fit 48 KiB.
    "small": {"few": Tile(64, 64, 64, 4, 2), "shallow": Tile(64, 128, 32, 4, 2), "many": Tile(64, 128, 32, 4, 2)},
}
SCAN["blackwell"] = SCAN["hopper"]
# The refinement multiplies the scan's tiles again: these are for the scan's block_m, and block_k is always 64.
REFINE: dict[str, dict[int, Tile]] = {
    "hopper": {64: Tile(64, 128, 64, 4, 2), 128: Tile(128, 128, 64, 8, 2)},
    "blackwell": {64: Tile(64, 128, 64, 4, 1), 128: Tile(128, 128, 64, 8, 1)},
    "ampere": {64: Tile(64, 64, 64, 4, 2), 128: Tile(128, 64, 64, 8, 2)},
    "small": {64: Tile(64, 32, 64, 4, 1)},
}
# Fewer columns, because each pair's place and bounds take registers too.
WITHIN: dict[str, Tile] = {
    "hopper": Tile(128, 64, 64, 8, 2),
    "blackwell": Tile(64, 64, 64, 8, 1),
    "ampere": Tile(64, 64, 64, 4, 2),
    "small": Tile(64, 32, 64, 8, 1),
}
FEW_ROWS = 1024
SHALLOW = 256  # dimensions


def generation(device: torch.device) -> str:
    """The device's key in the tables. Chips with little shared memory count as small, however new they are."""
    if device.type != "cuda":
        return "small"
    properties = _properties(device)
    shared = properties.shared_memory_per_block_optin
    if shared >= 220 * 1024:
        return "hopper" if properties.major == 9 else "blackwell"
    return "ampere" if shared >= 160 * 1024 else "small"


def multiprocessors(device: torch.device) -> int:
    """The number of the device's multiprocessors; without a GPU a small number that is not one."""
    return int(_properties(device).multi_processor_count) if device.type == "cuda" else 3


@functools.cache
def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


def scan_tile(device: torch.device, rows: int, k: int) -> Tile:
    """The scan's tile for so many rows of k dimensions. Its block_n is also the number of columns in a group."""
    kind = "few" if rows < FEW_ROWS else "shallow" if k <= SHALLOW else "many"
    return SCAN[generation(device)][kind]


def refine_tile(device: torch.device, block_m: int) -> Tile:
    """The refinement's tile for the scan's block_m."""
    return REFINE[generation(device)][block_m]


def within_tile(device: torch.device) -> Tile:
    """The tile in which pairs within a radius are found."""
    return WITHIN[generation(device)]


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which Triton launches on the tensor's GPU. Nothing where that is the current one already."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def returns_nothing(*arguments: Any) -> None:
    """The fake of a launcher that only changes its arguments."""


def operator(fake: Callable[..., Any], *mutates: str) -> Callable[[Launcher], Launcher]:
    """A decorator for launchers: torch.compile sees a call as one operator, imletriton::NAME, and traces only the fake.

    Outside of torch.compile the launcher is called directly, because a custom operator takes up to 50 us on the host.

    Args:
        fake: Takes the launcher's arguments, and returns tensors of the results' shapes and dtypes with any content.
        mutates: The names of the arguments that the launcher changes.
    """

    def decorate(launcher: Launcher) -> Launcher:
        custom_op = torch.library.custom_op(f"imletriton::{launcher.__name__}", launcher, mutates_args=mutates)
        custom_op.register_fake(fake)

        @functools.wraps(launcher)
        def call(*args: Any) -> Any:
            return custom_op(*args) if torch.compiler.is_compiling() else launcher(*args)

        call.custom_op = custom_op  # type: ignore[attr-defined]  # for torch.library.opcheck
        return cast(Launcher, call)

    return decorate
