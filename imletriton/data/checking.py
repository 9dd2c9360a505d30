"""What a folder of images holds, before hours of training on it: sizes, broken files, near duplicates."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from einops import rearrange
from PIL import Image

from imletriton.data import catalogue
from imletriton.data.files import list_images
from imletriton.data.folder import BROKEN, read_image
from imletriton.errors import InputError

SIDE = 32  # pixels at which images are compared
NEAR = 4 / 255  # root mean squared difference below which two are near duplicates; the range of pixels is 1


@dataclass(frozen=True)
class Duplicate:
    """Two near duplicates, by their names in the folder."""

    first: str
    second: str
    mirrored: bool  # one is near the other's mirror image
    difference: float  # root mean squared, of pixels in [0, 1]


@dataclass(frozen=True)
class Check:
    """What a folder holds; names are relative to it."""

    folder: Path
    images: int  # that can be read
    broken: dict[str, str]  # the others, and why
    sides: tuple[int, int, int]  # the least, median and greatest shorter side, in pixels
    sizes: int  # how many differ
    small: list[str]  # shorter side below the resolution
    duplicates: list[Duplicate]


def check(folder: Path, resolution: int = 256) -> Check:
    """Look at every image of a folder and below it, and compare each with all others and their mirror images.

    Every image that has a near duplicate is in at least one of the pairs. Raises InputError where the folder is none
    or no image can be read.
    """
    if not folder.expanduser().is_dir():
        known = catalogue.at(folder)
        raise InputError(f"{folder} is no folder: {known.how_to_get if known else 'give a folder of images'}.")
    sizes: dict[str, tuple[int, int]] = {}
    pictures: list[np.ndarray] = []
    broken: dict[str, str] = {}
    for file in list_images(folder):
        name = str(file.relative_to(folder.expanduser()))
        try:
            with Image.open(file) as opened:
                size = opened.size
            pictures.append(read_image(file, SIDE))
            sizes[name] = size
        except BROKEN as error:
            broken[name] = str(error)
    if not pictures:
        raise InputError(f"None of the {len(broken)} images in {folder} can be read: repair them or give others.")
    sides = sorted(min(size) for size in sizes.values())
    return Check(
        folder,
        len(pictures),
        broken,
        (sides[0], median_low(sides), sides[-1]),
        len(set(sizes.values())),
        [name for name, size in sizes.items() if min(size) < resolution],
        _near_duplicates(list(sizes), np.stack(pictures)),
    )


def _near_duplicates(names: list[str], images: np.ndarray) -> list[Duplicate]:
    """The pairs of images, uint8 [n, SIDE, SIDE, 3], that are each other's near duplicates, the nearest first.

    No search may meet the picture that it is for, so each searches one half of the pictures for the other half. Halved
    by each binary digit of their numbers in turn, any two pictures are in different halves at least once.
    """
    import torch  # here, as it loads slowly

    from imletriton.search import nearest

    found: dict[tuple[int, int], Duplicate] = {}
    pictures = torch.from_numpy(images).float() / 255
    numbers, pool = torch.arange(len(names)), rearrange(pictures, "n h w c -> n (h w c)")
    for bit in range((len(names) - 1).bit_length()):
        half = (numbers >> bit & 1).bool()
        for mirrored, queries in ((False, pool), (True, rearrange(pictures.flip(2), "n h w c -> n (h w c)"))):
            for mine, others in ((numbers[half], numbers[~half]), (numbers[~half], numbers[half])):
                result = nearest(queries[mine], pool[others])
                difference = (result.sq_distance / pool.shape[1]).sqrt()
                for k in (difference < NEAR).nonzero().flatten().tolist():
                    first, second = sorted((int(mine[k]), int(others[result.index[k]])))
                    pair = Duplicate(names[first], names[second], mirrored, float(difference[k]))
                    best = found.setdefault((first, second), pair)
                    if pair.difference < best.difference:
                        found[first, second] = pair
    return sorted(found.values(), key=lambda pair: pair.difference)
