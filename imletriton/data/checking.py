"""Check a folder of images before training on it for hours: sizes, broken files and near duplicates."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from einops import rearrange

from imletriton.data import catalogue
from imletriton.data.files import list_images, skipped
from imletriton.data.folder import Progress, read_images
from imletriton.errors import InputError

SIDE = 32  # pixels; images are compared at this size
MAX_DIFFERENCE = 4 / 255  # near duplicates differ by less than this: root mean squared, with pixels from 0 to 1


@dataclass(frozen=True)
class Duplicate:
    """A pair of near duplicates.

    Attributes:
        first: The name of the first image, relative to the folder.
        second: The name of the second image.
        mirrored: Whether one image is near the mirror image of the other.
        difference: The root mean squared difference of their pixels, which range from 0 to 1.
    """

    first: str
    second: str
    mirrored: bool
    difference: float


@dataclass(frozen=True)
class Check:
    """What a folder of images holds. All names are relative to the folder.

    Attributes:
        folder: The folder.
        images: The number of images that can be read.
        skipped: A sentence on what the folder holds besides images; empty where there is nothing else.
        broken: The names of the images that cannot be read, each with the reason.
        sides: The least, the median and the greatest length of an image's shorter side, in pixels.
        sizes: The number of distinct image sizes.
        small: The names of the images whose shorter side is below the resolution asked for.
        duplicates: The pairs of near duplicates, the most similar pair first.
    """

    folder: Path
    images: int
    skipped: str
    broken: dict[str, str]
    sides: tuple[int, int, int]
    sizes: int
    small: list[str]
    duplicates: list[Duplicate]


def check(folder: Path, resolution: int = 256, progress: Progress = lambda done, total: None) -> Check:
    """Read every image in a folder and below it, and compare each one with all others and with their mirror images.

    Args:
        folder: The folder of images.
        resolution: Images whose shorter side is below this, in pixels, are listed as small.
        progress: Called with the number of images read so far, and their total.

    Returns:
        The findings. Every image that has a near duplicate is in at least one of the listed pairs.

    Raises:
        InputError: The folder does not exist, or none of its images can be read.
    """
    if not folder.expanduser().is_dir():
        dataset = catalogue.at(folder)
        raise InputError(f"{folder} is no folder: {dataset.how_to_get if dataset else 'give a folder of images'}.")
    files = list_images(folder)
    names = [str(file.relative_to(folder.expanduser())) for file in files]
    images, all_sizes, broken = read_images(files, SIDE, progress)
    sizes = {name: size for name, size in zip(names, all_sizes, strict=True) if size}
    if not sizes:
        raise InputError(f"None of the {len(broken)} images in {folder} can be read: repair them or give others.")
    sides = sorted(min(size) for size in sizes.values())
    return Check(
        folder,
        len(sizes),
        skipped(folder),
        {names[k]: reason for k, reason in broken.items()},
        (sides[0], median_low(sides), sides[-1]),
        len(set(sizes.values())),
        [name for name, size in sizes.items() if min(size) < resolution],
        _near_duplicates(list(sizes), images[[size is not None for size in all_sizes]]),
    )


def _near_duplicates(names: list[str], images: np.ndarray) -> list[Duplicate]:
    """Find the pairs of near duplicates among images, uint8 [n, 3, SIDE, SIDE], the most similar pair first.

    An image must not find itself as its own nearest neighbour, so each search looks up one half of the images in the
    other half. The halves follow each binary digit of the images' numbers in turn: any two numbers differ in at least
    one digit, so any two images are compared at least once.
    """
    import torch  # imported here because it loads slowly

    from imletriton.search import nearest

    duplicates: dict[tuple[int, int], Duplicate] = {}
    pixels = torch.from_numpy(images).float() / 255
    numbers, plain = torch.arange(len(names)), rearrange(pixels, "n c h w -> n (c h w)")
    flipped = rearrange(pixels.flip(3), "n c h w -> n (c h w)")
    for bit in range((len(names) - 1).bit_length()):
        half = (numbers >> bit & 1).bool()
        for mirrored, queries in ((False, plain), (True, flipped)):
            for searching, others in ((numbers[half], numbers[~half]), (numbers[~half], numbers[half])):
                result = nearest(queries[searching], plain[others])
                difference = (result.sq_distance / plain.shape[1]).sqrt()
                for k in (difference < MAX_DIFFERENCE).nonzero().flatten().tolist():
                    first, second = sorted((int(searching[k]), int(others[result.index[k]])))
                    pair = Duplicate(names[first], names[second], mirrored, float(difference[k]))
                    best = duplicates.setdefault((first, second), pair)
                    if pair.difference < best.difference:
                        duplicates[first, second] = pair
    return sorted(duplicates.values(), key=lambda pair: pair.difference)
