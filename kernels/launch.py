"""How large the kernels' tiles are: few configurations, chosen by the device and the shape of the work.

To try another one, replace an entry: `launch.SCAN["hopper"]["many"] = Tile(...)`.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Rows, columns (256 at most) and depth of a program's product, its warps, and loads in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# "few": so few rows that tiles of 128 would leave multiprocessors idle or half of the last tile empty.
SCAN: dict[str, dict[str, Tile]] = {
    "hopper": {"few": Tile(64, 128, 64, 4, 4), "many": Tile(128, 256, 64, 8, 3)},
    "ampere": {"few": Tile(64, 128, 64, 4, 3), "many": Tile(128, 128, 64, 8, 3)},
    "small": {"few": Tile(64, 64, 64, 4, 2), "many": Tile(64, 128, 32, 4, 2)},  # anything else: fits 48 KiB
}
# The accurate product works on float32 with three times the instructions: smaller tiles keep it in registers.
REFINE: dict[str, Tile] = {
    "hopper": Tile(64, 128, 32, 8, 2),
    "ampere": Tile(64, 128, 32, 8, 2),
    "small": Tile(32, 64, 32, 4, 1),
}
FEW = 1024  # rows


def generation(device: torch.device) -> str:
    """The device's entry in the tables. Chips with little shared memory count as small whatever their age."""
    if device.type != "cuda":
        return "small"
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return "hopper" if shared >= 220 * 1024 else "ampere" if shared >= 160 * 1024 else "small"


def scan_tile(device: torch.device, rows: int) -> Tile:
    return SCAN[generation(device)]["few" if rows < FEW else "many"]
