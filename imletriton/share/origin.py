"""How a picture was made: what the metadata of a PNG file says of the model, and of the sample or the latent code."""

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
MEND = "name a picture as `imletriton gen` or `imletriton explore` saved it"


class Maker(NamedTuple):
    """The model that makes a picture, as the picture's metadata names it."""

    model: str  # the SHA-256 sum of its weights
    name: str  # its title, for people

    @classmethod
    def of(cls, source: Source) -> Self:
        return cls(model_hash(source.checkpoint), source.title)


class Origin(BaseModel):
    """What a picture was made from, so that the model can make it again."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str  # the SHA-256 sum of its weights
    name: str  # its title, for people
    made: str  # how the picture was made, for people: "sample 3 of seed 0"
    seed: int | None = Field(None, ge=0, lt=2**32)  # of the sample
    sample: int | None = Field(None, ge=0, lt=2**32)  # the number of the sample
    # float32 [1, latent_dim], or [3, latent_dim] for coarse, middle and fine; base64, little-endian. None for a sample.
    latents: str | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.latents is None and (self.seed is None or self.sample is None):
            raise ValueError("it names neither a sample of a seed nor a latent code")
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
            made: How it was made.
            seed: The random seed of a sample.
            sample: The number of a sample.
        """
        values = None if codes is None else codes.cpu().numpy().astype("<f4").tobytes()
        latents = None if values is None else base64.b64encode(values).decode()
        return cls(model=maker.model, name=maker.name, made=made, seed=seed, sample=sample, latents=latents)

    @property
    def text(self) -> dict[str, str]:
        """The metadata of the picture, by keyword."""
        return {KEYWORD: self.model_dump_json(exclude_none=True)}

    @property
    def name_of_file(self) -> str:
        """A file name that no picture of another model or latent code has: sample-3-of-seed-0-1f2e3d4c.png."""
        made = re.sub(r"[^a-z0-9]+", "-", self.made.lower())[:60].strip("-")
        return f"{made}-{self.digest[:8]}.png"

    @property
    def digest(self) -> str:
        """The SHA-256 sum of the model and the sample or the latent code."""
        return hashlib.sha256(f"{self.model} {self.latents or (self.seed, self.sample)}".encode()).hexdigest()


def near(made: str) -> str:
    """How a neighbour of a picture was made."""
    return f"near {made.removeprefix('near ')}"


def read_origin(file: Path) -> Origin:
    """Read how a picture was made.

    Raises:
        InputError: The file is missing or damaged, or its metadata does not say it.
    """
    try:
        with open_image(file) as picture:
            picture.load()  # as metadata may follow the pixels
            text = getattr(picture, "text", {}).get(KEYWORD)
    except BrokenImage as error:
        raise InputError(f"{file} cannot be read ({error}): {MEND}.") from error
    if text is None:
        raise InputError(f"The metadata of {file} does not name a latent code: {MEND}.")
    try:
        return Origin.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"The metadata of {file} is damaged ({why(error)}): {MEND}.") from error


def codes_of(file: Path, maker: Maker, latent_dim: int) -> "tuple[Origin, Tensor]":
    """Read how a picture was made, and its latent codes.

    Args:
        file: The PNG file.
        maker: The model that must have made it.
        latent_dim: The dimension of its latent codes.

    Returns:
        The origin, and the codes, float32 [1 or 3, latent_dim].

    Raises:
        InputError: See `read_origin`; or another model made the picture, or its latent codes are damaged.
    """
    import numpy as np
    import torch

    from imletriton.generator import latent_codes

    origin = read_origin(file)
    if origin.model != maker.model:
        raise InputError(f"{file} was made by {origin.name}, not by {maker.name}: name the model that made it.")
    if origin.latents is None:
        assert origin.seed is not None
        assert origin.sample is not None
        return origin, latent_codes(origin.sample, origin.sample + 1, latent_dim, seed=origin.seed)
    try:
        values = np.frombuffer(base64.b64decode(origin.latents, validate=True), "<f4").astype(np.float32)
        codes = torch.from_numpy(values.reshape(-1, latent_dim))
        if len(codes) not in (1, 3) or not codes.isfinite().all():
            raise ValueError(f"{len(codes)} codes, or numbers that are not finite")
    except ValueError as error:  # of base64 and NumPy too
        raise InputError(f"The latent code in {file} is damaged ({error}): name another picture.") from error
    return origin, codes


def check_like(file: Path, distance: float) -> None:
    """Check what `generate` is given: a picture whose neighbours are wanted, and their distance from it.

    Raises:
        InputError: See `read_origin`; or the distance is out of range.
    """
    if not 0 < distance <= 1:
        raise InputError(f"`distance` must be more than 0 and at most 1, not {distance:g}.")
    read_origin(file)
