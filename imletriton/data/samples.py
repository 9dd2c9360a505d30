"""A folder of samples, whatever generated them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from imletriton.data.files import list_training_images
from imletriton.data.folder import BrokenImage, open_image, read_image
from imletriton.errors import InputError

if TYPE_CHECKING:  # a wrong folder is reported before PyTorch is imported
    from torch import Tensor

BATCH = 16


def list_samples(folder: Path) -> list[Path]:
    """List the pictures in a folder of samples.

    Raises:
        InputError: There is no such folder, or it holds fewer than two pictures.
    """
    if not folder.is_dir():
        raise InputError(f"`samples` {folder} is not a folder: name a folder of pictures.")
    return list_training_images(folder)


class FolderSamples:
    """Square pictures of one size in a folder.

    Args:
        folder: The folder.
        at_most: How many are taken, in the order of their names.

    Raises:
        InputError: There is no such folder, it holds fewer than two pictures, or they are not squares of one size.
    """

    holdout, step = 0.0, None  # as of a model that is not known

    def __init__(self, folder: Path, at_most: int) -> None:
        self.label = str(folder)
        folder = folder.expanduser()
        files = list_samples(folder)
        self.files, self.count = files[:at_most], min(len(files), at_most)
        sizes: dict[tuple[int, int], Path] = {}
        for file in self.files:
            with _broken_as_input_error(file), open_image(file) as picture:
                sizes.setdefault(picture.size, file)
        (width, height), *others = sizes
        if others or width != height:
            examples = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in list(sizes.items())[:3])
            raise InputError(f"{folder} holds pictures of {examples}: they must be squares of one size.")
        self.resolution = width
        all_files = sum(p.is_file() and not p.name.startswith(".") for p in folder.rglob("*"))
        self.notes = []
        if all_files > len(files):
            self.notes.append(f"Files in {folder} that are not pictures were left out: {all_files - len(files)}.")
        if len(files) > self.count:
            self.notes.append(f"The first {self.count} of {len(files)} pictures in {folder} were taken, by name.")

    def batches(self, n: int) -> "Iterator[Tensor]":
        """The first n pictures in batches, uint8 [b, 3, H, W], in the order of their names."""
        import torch  # here, as it loads slowly

        for first in range(0, n, BATCH):
            batch = []
            for file in self.files[first : min(first + BATCH, n)]:
                with _broken_as_input_error(file):
                    batch.append(read_image(file, self.resolution))
            yield rearrange(torch.from_numpy(np.stack(batch)), "b h w c -> b c h w")


@contextlib.contextmanager
def _broken_as_input_error(file: Path) -> Iterator[None]:
    try:
        yield
    except BrokenImage as error:
        raise InputError(f"{file} cannot be read ({error}): repair or remove it.") from error
