"""The samples that `evaluate` judges: those of a model, or any folder's pictures."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from imletriton.commands.checks import list_samples
from imletriton.data import check_points, training_part
from imletriton.data.folder import BrokenImage, open_image, read_image
from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.metrics.features import BATCH
from imletriton.recipe import recipe_of
from imletriton.runs.checkpoint import best_checkpoint, load_state
from imletriton.runs.opening import Source

SEED = 0  # the random seed of the samples that are judged


class ModelSamples:
    """Samples that a model makes from random seed SEED.

    Args:
        source: The model.
        device: Where it runs.
    """

    label = f"seed {SEED}"
    count = 2**32  # samples that it can make

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device, self.step = source, device, source.step
        self.recipe = recipe_of(source)
        self.holdout = self.recipe.data.holdout if self.recipe else 0.0

    @cached_property
    def model(self) -> Generator:
        """The generator, in eval mode.

        Raises:
            InputError: It generates points, not pictures.
        """
        model = Generator.from_pretrained(self.source).to(self.device)
        if len(model.shape) != 3:
            raise InputError(f"{self.source.name} generates points, not pictures: `imletriton show` draws them.")
        return model

    @property
    def resolution(self) -> int:
        return self.model.shape[-1]

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader of the metrics must know."""
        notes = []
        if self.holdout:
            notes.append("Pictures held out from training are among those compared with.")
        if self.source.has_recipe:
            best = best_checkpoint(self.source.run.path)
            if best.name != self.source.checkpoint.name and load_state(best).get("fid") is not None:
                notes.append(f"The least FID while training was at step {int(best.name)}: imletriton eval {best}")
        return notes

    def batches(self, n: int) -> Iterator[Tensor]:
        """Samples 0 to n - 1 in batches, uint8 [b, 3, H, W]."""
        return self.model.sample_batches(n, SEED)

    def check_data(self, pictures: Tensor) -> None:
        """Check that all pictures of the recipe's source are those that were there in training.

        Raises:
            InputError: They are not.
        """
        if self.recipe:
            trained = training_part(pictures, self.recipe.data.mirror, self.recipe.data.holdout)
            check_points(trained, load_state(self.source.checkpoint)["data"], str(self.source.run.path))


class FolderSamples:
    """Pictures of one size in a folder.

    Args:
        folder: The folder.
        at_most: How many are taken, in the order of their names.

    Raises:
        InputError: It is no folder, holds fewer than two pictures, or pictures that are no squares of one size.
    """

    holdout, step = 0.0, None

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
            self.notes.append(f"Files in {folder} that are no pictures were left out: {all_files - len(files)}.")
        if len(files) > self.count:
            self.notes.append(f"The first {self.count} of {len(files)} pictures in {folder} were taken, by name.")

    def batches(self, n: int) -> Iterator[Tensor]:
        """The first n pictures in batches, uint8 [b, 3, H, W], in the order of their names."""
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
