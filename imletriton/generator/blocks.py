"""A decoder's blocks, as a recipe writes them; read without PyTorch."""

import re
from typing import NamedTuple


class Block(NamedTuple):
    """One decoder block: the resolution it works at, and the one it is upsampled from (None: it is not)."""

    resolution: int
    upsample_from: int | None


def parse_blocks(text: str) -> list[Block]:
    """Read a decoder's blocks: `RxK` is K blocks at resolution R, `RmS` upsamples from S to R, then a block.

    Raises ValueError, naming the item, where an item cannot be read or does not follow from the one before.
    """
    blocks: list[Block] = []
    for item in text.replace(" ", "").split(","):
        match = re.fullmatch(r"([1-9]\d*)([xm])([1-9]\d*)", item)
        if not match:
            raise ValueError(f"blocks: {item!r} is neither RxK (4x2: two blocks at 4) nor RmS (8m4: from 4 to 8)")
        resolution, kind, number = int(match[1]), match[2], int(match[3])
        before = number if kind == "m" else resolution
        if blocks and blocks[-1].resolution != before:
            raise ValueError(
                f"blocks: {item!r} starts at {before}, the block before it ends at {blocks[-1].resolution}"
            )
        if not blocks and kind == "m":
            raise ValueError(f"blocks: the first item is {item!r}; start with blocks at a resolution, such as 4x1")
        if kind == "m" and (resolution <= number or resolution % number):
            raise ValueError(f"blocks: {item!r} must upsample by a whole factor of 2 or more")
        blocks += [Block(resolution, number)] if kind == "m" else [Block(resolution, None)] * number
    return blocks
