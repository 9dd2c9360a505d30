"""Check a folder of images before training on it for hours: sizes, broken files and near duplicates."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from einops import rearrange

from imletriton.data import catalogue
from imletriton.data.files import list_images, skipped
from imletriton.data.folder import Progress, read_images
from imletriton.errors import InputError

SIDE = 32  # pixels; images are compared at this size
COMPARED = 512  # images that all others are compared with at once
MAX_DIFFERENCE = 4 / 255  # near duplicates differ by less than this: root mean squared, with pixels from 0 to 1


class Duplicate(NamedTuple):
    """A pair of near duplicates."""

    first: str  # names, relative to the folder
    second: str
    mirrored: bool  # whether one image resembles the mirror image of the other
    difference: float  # root mean squared difference of their pixels, which range from 0 to 1


class Check(NamedTuple):
    """What a folder of images holds. All names are relative to the folder."""

    folder: Path
    images: int  # that can be read
    skipped: str  # a sentence on what the folder holds besides images; empty if nothing
    broken: dict[str, str]  # the names of the images that cannot be read, each with the reason
    sides: tuple[int, int, int]  # least, median and greatest shorter side of an image, in pixels
    sizes: int  # number of distinct image sizes
    small: list[str]  # the names of the images whose shorter side is below the resolution
    duplicates: list[Duplicate]  # the most similar pair first


def check(
    folder: Path, resolution: int = 256, progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> Check:
    """Read every image in a folder and below it, and compare each one with all others and with their mirror images.

    Args:
        folder: The folder of images.
        resolution: Images whose shorter side is below this, in pixels, are listed as small.
        progress: Called with the name of the work, how much of it is done, and its total.

    Returns:
        The findings. Every image that has a near duplicate is in at least one of the pairs.

    Raises:
        InputError: The folder does not exist, or none of its images can be read.
    """
    if not folder.expanduser().is_dir():
        dataset = catalogue.at(folder)
        raise InputError(f"{folder} is not a folder: {dataset.how_to_get if dataset else 'give a folder of images'}.")
    files = list_images(folder)
    names = [str(file.relative_to(folder.expanduser())) for file in files]
    images, all_sizes, broken = read_images(files, SIDE, partial(progress, "pictures"))
    sizes = {name: size for name, size in zip(names, all_sizes, strict=True) if size}
    if not sizes:
        raise InputError(f"None of the {len(broken)} images in {folder} can be read: repair them or give others.")
    sides = sorted(min(size) for size in sizes.values())
    whole = images[[size is not None for size in all_sizes]] if broken else images
    return Check(
        folder,
        len(sizes),
        skipped(folder),
        {names[k]: reason for k, reason in broken.items()},
        (sides[0], median_low(sides), sides[-1]),
        len(set(sizes.values())),
        [name for name, size in sizes.items() if min(size) < resolution],
        _near_duplicates(list(sizes), whole, partial(progress, "comparing")),
    )


def _near_duplicates(names: list[str], images: np.ndarray, progress: Progress) -> list[Duplicate]:
    """Find the near duplicates among images, uint8 [n, 3, SIDE, SIDE], the most similar pair first.

    For each image, the two nearest images are searched, and the two nearest to its mirror image: one may be itself.
    """
    import torch  # here because it loads slowly

    from imletriton.search import NearestSearch

    pixels = torch.from_numpy(images).float() / 255
    plain, flipped = (rearrange(p, "n c h w -> n (c h w)") for p in (pixels, pixels.flip(3)))
    duplicates: dict[tuple[int, int], Duplicate] = {}
    for turn, queries in enumerate((plain, flipped)):
        search = NearestSearch(queries, k=2)
        for chunk in plain.split(COMPARED):
            progress(turn * len(names) + search.seen, 2 * len(names))
            search.update(chunk)
        difference = (search.sq_distance / plain.shape[1]).sqrt()
        other = search.index != torch.arange(len(names))[:, None]
        for k, place in (other & (difference < MAX_DIFFERENCE)).nonzero().tolist():
            first, second = sorted((k, int(search.index[k, place])))
            pair = Duplicate(names[first], names[second], turn == 1, float(difference[k, place]))
            best = duplicates.setdefault((first, second), pair)
            if pair.difference < best.difference:
                duplicates[first, second] = pair
    progress(2 * len(names), 2 * len(names))
    return sorted(duplicates.values(), key=lambda pair: pair.difference)
