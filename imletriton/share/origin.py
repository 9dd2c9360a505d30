"""Where a picture comes from: what PNG files that a model has made say of that in their metadata."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imletriton.data.folder import BrokenImage, open_image
from imletriton.errors import InputError
from imletriton.runs.opening import Source
from imletriton.runs.reading import why
from imletriton.share.latents import model_hash

if TYPE_CHECKING:  # files are checked before PyTorch is imported
    from torch import Tensor

KEYWORD = "imletriton"  # of the text chunk that holds an Origin as JSON


class Maker(NamedTuple):
    """A model, as the pictures that it makes remember it."""

    model: str  # the SHA-256 sum of its weights
    name: str  # its title, for people

    @classmethod
    def of(cls, source: Source) -> Self:
        return cls(model_hash(source.checkpoint), source.title)


class Origin(BaseModel):
    """What a picture was made from. A model makes the same picture from it again."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str  # the SHA-256 sum of its weights
    name: str  # its title, for people
    made: str  # how the picture came about, for people: "sample 3 of seed 0"
    seed: int | None = Field(None, ge=0, lt=2**32)  # of the sample
    sample: int | None = Field(None, ge=0, lt=2**32)  # the number of the sample
    # float32 [1, latent_dim], or [3, latent_dim] for coarse, middle and fine; base64, little-endian. None for a sample.
    latents: str | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.latents is None and (self.seed is None or self.sample is None):
            raise ValueError("neither a sample of a seed nor a latent code is named")
        return self

    @classmethod
    def of(
        cls, maker: Maker, codes: "Tensor | None", made: str, seed: int | None = None, sample: int | None = None
    ) -> Self:
        """Describe a picture.

        Args:
            maker: The model that made it.
            codes: Its latent code, float32 [1, latent_dim]; those of its coarse, middle and fine blocks, [3, ...]; or
                None for a sample, whose seed and number are enough.
            made: How it came about.
            seed: The random seed, if it is a sample of one.
            sample: The number of the sample.
        """
        values = None if codes is None else codes.cpu().numpy().astype("<f4").tobytes()
        latents = None if values is None else base64.b64encode(values).decode()
        return cls(model=maker.model, name=maker.name, made=made, seed=seed, sample=sample, latents=latents)

    @property
    def text(self) -> dict[str, str]:
        """What the metadata of the picture holds, by keyword."""
        return {KEYWORD: self.model_dump_json(exclude_none=True)}

    @property
    def name_of_file(self) -> str:
        """A name that pictures of other models or latent codes do not have: sample-3-of-seed-0-1f2e3d4c.png."""
        made = re.sub(r"[^a-z0-9]+", "-", self.made.lower())[:60].strip("-")
        return f"{made}-{self.digest[:8]}.png"

    @property
    def digest(self) -> str:
        """The SHA-256 sum of what the picture was made from."""
        return hashlib.sha256(f"{self.model} {self.latents or (self.seed, self.sample)}".encode()).hexdigest()

    def codes(self, latent_dim: int) -> "Tensor":
        """The latent codes, float32 [1 or 3, latent_dim].

        Raises:
            ValueError: They are damaged.
        """
        import numpy as np
        import torch

        from imletriton.generator import latent_codes

        if self.latents is None:
            assert self.seed is not None
            assert self.sample is not None
            return latent_codes(self.sample, self.sample + 1, latent_dim, seed=self.seed)
        values = np.frombuffer(base64.b64decode(self.latents, validate=True), "<f4").astype(np.float32)
        if values.size not in (latent_dim, 3 * latent_dim) or not np.isfinite(values).all():
            raise ValueError(f"it has {values.size} numbers, which are not finite or not {latent_dim}")
        return torch.from_numpy(values.reshape(-1, latent_dim))


def near(made: str) -> str:
    """How a neighbour of a picture came about."""
    return f"near {made.removeprefix('near ')}"


def read_origin(file: Path) -> Origin:
    """Read where a picture comes from.

    Raises:
        InputError: The file is missing or damaged, or says nothing of it.
    """
    mend = "name a picture that `imletriton gen` or `imletriton explore` has saved, as it was saved"
    try:
        with open_image(file) as picture:
            picture.load()  # as metadata may follow the pixels
            text = getattr(picture, "text", {}).get(KEYWORD)
    except BrokenImage as error:
        raise InputError(f"{file} cannot be read ({error}): {mend}.") from error
    if text is None:
        raise InputError(f"{file} does not tell from which latent code it was made: {mend}.")
    try:
        return Origin.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{file} tells in a damaged way from what it was made ({why(error)}): {mend}.") from error


def codes_of(file: Path, maker: Maker, latent_dim: int) -> "tuple[Origin, Tensor]":
    """Read where a picture comes from, and the latent codes that this model makes it from.

    Args:
        file: The PNG file.
        maker: The model.
        latent_dim: The dimension of its latent codes.

    Returns:
        The origin, and the codes, float32 [1 or 3, latent_dim].

    Raises:
        InputError: See `read_origin`; or the picture was made by another model, or its latent codes are damaged.
    """
    origin = read_origin(file)
    if origin.model != maker.model:
        raise InputError(f"{file} was made by {origin.name}, not by {maker.name}: name the model that made it.")
    try:
        return origin, origin.codes(latent_dim)
    except ValueError as error:  # of base64 too
        raise InputError(f"The latent code in {file} is damaged ({error}): name another picture.") from error


def check_like(file: Path, distance: float) -> None:
    """Check the picture that others shall be like, and how far from it they may be.

    Raises:
        InputError: The picture does not tell from what it was made, or the distance is out of range.
    """
    if not 0 < distance <= 1:
        raise InputError(f"`distance` must be more than 0 and at most 1, not {distance:g}.")
    read_origin(file)
