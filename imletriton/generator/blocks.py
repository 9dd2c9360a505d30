"""The blocks of a decoder: reading them from a recipe, and deriving them from a resolution. Needs no PyTorch."""

import re
from itertools import pairwise
from typing import NamedTuple

MAX_RESOLUTION = 8192  # pixels
MAX_BLOCKS = 1000
MAX_PATCH = 16  # pixels


class Block(NamedTuple):
    """One block of a decoder."""

    resolution: int  # in pixels
    upsample_from: int | None  # the resolution that it upsamples from, if it does


def parse_blocks(text: str) -> list[Block]:
    """Read the blocks of a decoder: items separated by commas.

    `RxK` stands for K blocks at resolution R in pixels, and `RmS` for upsampling from resolution S to R and one block.
    Raises ValueError, with the item, if one cannot be read or does not continue the one before.
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


def auto_blocks(resolution: int, depth: int, patch: int = 1) -> str:
    """Lay out the blocks, as `parse_blocks` reads them, of a decoder that doubles its resolution in each stage.

    The first stage has 4 to 7 pixels. After the block that upsamples to it, each stage has `depth` more below 16
    pixels, one fewer below 32, two fewer from there on, and none at the last resolution, where they would cost the
    most. From depth 4 on, as many at 1x1 come first. So depth 4 at 256 pixels gives the papers' blocks, and depth 2 at
    64 pixels, in patches of 2, those of the demo.

    Args:
        resolution: The resolution of the samples, in pixels.
        depth: The number of blocks at each of the coarsest resolutions.
        patch: The side in pixels of the square that each position of the last feature maps draws.

    Raises:
        ValueError: The resolution, divided by `patch`, cannot be reached by doubling from 4 to 7 pixels.
    """
    images, resolution = resolution, resolution // patch
    stages = [resolution]
    while stages[0] >= 8 and stages[0] % 2 == 0:
        stages.insert(0, stages[0] // 2)
    if not 4 <= stages[0] < 8 or images % patch:
        power = 1 << max(0, resolution.bit_length() - 3)
        near = max(4, min(MAX_RESOLUTION // patch, round(images / patch / power) * power)) * patch
        least = f"4 to 7 pixels, times {patch}," if patch > 1 else "4 to 7 pixels"
        raise ValueError(f"{images} pixels are not {least} doubled some times: take {near}")
    items = [f"{stages[0]}x{depth}"]
    if depth >= 4:
        items = [f"1x{depth}", f"{stages[0]}m1", *items]
    for before, stage in pairwise(stages):
        items.append(f"{stage}m{before}")
        own = depth - (stage >= 16) - (stage >= 32)
        if stage < resolution and own > 0:
            items.append(f"{stage}x{own}")
    return ",".join(items)
