"""The blocks of a decoder as a recipe writes them; read without PyTorch."""

import re
from typing import NamedTuple

MAX_RESOLUTION = 8192  # pixels
MAX_BLOCKS = 1000


class Block(NamedTuple):
    """One block: the resolution at which it works, and the one from which it upsamples (None: it does not)."""

    resolution: int
    upsample_from: int | None


def parse_blocks(text: str) -> list[Block]:
    """Read the blocks of a decoder.

    Args:
        text: Items separated by commas. `RxK` stands for K blocks at resolution R, in pixels, and `RmS` for upsampling
            from resolution S to R, followed by a block.

    Returns:
        The blocks in order.

    Raises:
        ValueError: An item cannot be read, or does not follow from the one before; the message names it.
    """
    blocks: list[Block] = []
    for item in text.replace(" ", "").split(","):
        match = re.fullmatch(r"([1-9]\d{0,9})([xm])([1-9]\d{0,9})", item)
        if not match:
            raise ValueError(f"{item[:40]!r} is neither RxK (4x2: two blocks at 4) nor RmS (8m4: from 4 to 8)")
        resolution, kind, number = int(match[1]), match[2], int(match[3])
        if resolution > MAX_RESOLUTION:
            raise ValueError(f"{item!r} works at {resolution} pixels, more than {MAX_RESOLUTION}")
        if kind == "x" and number > MAX_BLOCKS - len(blocks):
            raise ValueError(f"{item!r} makes more than {MAX_BLOCKS} blocks")
        before = number if kind == "m" else resolution
        if blocks and blocks[-1].resolution != before:
            raise ValueError(f"{item!r} starts at {before}, the block before it ends at {blocks[-1].resolution}")
        if not blocks and kind == "m":
            raise ValueError(f"the first item is {item!r}; start with blocks at a resolution, such as 4x1")
        if kind == "m" and (resolution <= number or resolution % number):
            raise ValueError(f"{item!r} must upsample by a whole factor of 2 or more")
        blocks += [Block(resolution, number)] if kind == "m" else [Block(resolution, None)] * number
    return blocks
