"""The tile sizes of the matmul kernels: few configurations, chosen by the device and the shape of the work.

To try another one, replace an entry: `launch.SCAN["hopper"]["many"] = Tile(...)`.
"""

from dataclasses import dataclass

import torch


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
FEW_ROWS = 1024


def generation(device: torch.device) -> str:
    """The device's key in the tables. Chips with little shared memory count as small, however new they are."""
    if device.type != "cuda":
        return "small"
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return "hopper" if shared >= 220 * 1024 else "ampere" if shared >= 160 * 1024 else "small"


def scan_tile(device: torch.device, rows: int) -> Tile:
    """The scan's tile for so many rows. Its block_n is also the number of columns in a group."""
    return SCAN[generation(device)]["few" if rows < FEW_ROWS else "many"]
