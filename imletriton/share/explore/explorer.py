"""What the page of `imletriton explore` shows: samples, neighbours, mixes, the nearest training pictures, and so on."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from imletriton.data.folder import read_images
from imletriton.distance import as_float
from imletriton.errors import InputError
from imletriton.generator import latent_codes, slerp
from imletriton.metrics.backtracking import backtrack
from imletriton.plotting.grids import save_picture
from imletriton.runs.opening import Source
from imletriton.share.model import Loaded, Unsuitable
from imletriton.share.origin import Maker, Origin, codes_of, near
from imletriton.share.variations import draw, neighbours
from imletriton.system.checks import writing

STARTS, STEPS = 32, 100  # of the search for a photo's latent code
CANDIDATES = 8  # training pictures among which the distance decides which one is the nearest
PARTS = ("coarse", "middle", "fine")  # of a decoder's blocks


@dataclass(frozen=True)
class Picture:
    """A picture, and how the model made it."""

    image: Tensor  # uint8 [3, H, W]
    codes: Tensor  # its latent code, float32 [1, latent_dim]; or those of its coarse, middle and fine blocks, [3, ...]
    made: str  # how it was made, for people
    seed: int | None = None  # of a sample
    sample: int | None = None  # the number of a sample


class Nearest(NamedTuple):
    """The training picture that is nearest to a picture."""

    image: Tensor  # uint8 [3, H, W]
    number: int  # in the order of the training pictures
    distance: float  # to the picture
    spacing: float  # from this training picture to the nearest other one


class Explorer(Loaded):
    """A model, and what can be done with its pictures; see `Loaded`.

    Raises:
        InputError: It generates points, not pictures.
    """

    def __init__(self, source: Source, device: str | torch.device | None = None) -> None:
        super().__init__(source, device)
        self.picture_model.requires_grad_(False)
        self.maker, self._lock = Maker.of(self.source), threading.Lock()

    @property
    def resolution(self) -> int:
        """The side of a picture in pixels."""
        return self.model.shape[-1]

    def samples(self, n: int, seed: int) -> list[Picture]:
        """The samples 0 to n - 1 of a random seed, as `imletriton gen` makes them."""
        codes = latent_codes(0, n, self.model.latent_dim, seed=seed)
        pairs = enumerate(zip(self.model.sample(n, seed).cpu(), codes, strict=True))
        return [Picture(image, z[None], f"sample {k} of seed {seed}", seed, k) for k, (image, z) in pairs]

    def neighbours(self, picture: Picture, n: int, distance: float, seed: int) -> list[Picture]:
        """The neighbours 0 to n - 1 of a picture; see the function `neighbours`."""
        batches = neighbours(self.model, picture.codes, distance, seed, 0, n)
        made = near(picture.made)
        return [Picture(image, z, made) for codes, images in batches for z, image in zip(codes, images, strict=True)]

    def mixes(self, one: Picture, other: Picture) -> list[Picture]:
        """The first picture, the six mixes of its coarse, middle and fine styles with those of the other, the other.

        Raises:
            InputError: The model's decoder has no blocks.
        """
        taken = [parts for k in range(4) for parts in combinations(PARTS, k)]  # from the other picture
        chosen = torch.tensor([[part in parts for part in PARTS] for parts in taken])[..., None]
        codes = torch.where(chosen, other.codes.expand(3, -1), one.codes.expand(3, -1))
        drawn = [
            Picture(image, z, f"{one.made} with {', '.join(parts)} of {other.made}"[:200])
            for image, z, parts in zip(draw(self.model, codes), codes, taken, strict=True)
        ]
        return [replace(one, image=drawn[0].image), *drawn[1:-1], replace(other, image=drawn[-1].image)]

    def between(self, one: Picture, other: Picture, t: float) -> Picture:
        """A picture on the way from one to another, with t from 0 to 1."""
        k = max(len(one.codes), len(other.codes))
        codes = slerp(one.codes.expand(k, -1), other.codes.expand(k, -1), t)
        made = f"{t:.0%} of the way from {one.made} to {other.made}"[:200]
        return Picture(draw(self.model, codes[None])[0], codes, made)

    @cached_property
    def _features(self) -> Tensor:
        """The search features of the training pictures, float32 [n, d]."""
        return self.features_of(self.points, self.perceptual[0])

    @torch.no_grad()
    def nearest(self, picture: Picture) -> Nearest:
        """The training picture that is nearest to a picture.

        Raises:
            InputError: The training pictures are not available; the message says why.
        """
        try:
            with self._lock:  # several visitors may ask at once, and the first one waits for the features
                _ = self._features
        except Unsuitable as reason:
            raise InputError(f"{self.source.name} has no training pictures to compare with: {reason}.") from None
        number, distance = self._nearest_to(picture.image)
        half = len(self.points) // 2 if self.recipe.data.mirror else 0  # the second half are mirror images
        _, spacing = self._nearest_to(self.points[number], {number, number + half, number - half})
        return Nearest(self.points[number], number, distance, spacing)

    def _nearest_to(self, image: Tensor, excluded: Collection[int] = ()) -> tuple[int, float]:
        """The number and distance of the nearest training picture. Search features propose CANDIDATES to compare."""
        distance, image = self.perceptual[0], image[None].to(self.device)
        allowed = torch.tensor([k for k in range(len(self.points)) if k not in excluded])
        apart = torch.cdist(distance.features(image), self._features[allowed.to(self.device)])[0]
        likely = allowed[apart.topk(min(CANDIDATES, len(allowed)), largest=False).indices.cpu()]
        among = self.points[likely].to(self.device)
        distances = distance.loss(as_float(image.expand_as(among)), among)
        best = int(distances.argmin())
        return int(likely[best]), float(distances[best])

    def project(self, file: Path, progress: Callable[[float], None] = lambda share: None) -> Picture:
        """The picture that is nearest to a photo; or, where this model made the file, the picture that was saved.

        Args:
            file: The photo, of any size.
            progress: Called with the share of the work that is done, from 0 to 1.

        Raises:
            InputError: The file cannot be read.
        """
        try:
            return self.load(file)
        except InputError:  # any other photo
            pass
        photos, _, broken = read_images([file], self.resolution)
        if broken:
            raise InputError(f"This photo cannot be read ({broken[0]}): try another one.")
        images, distance = torch.from_numpy(photos), self.perceptual[0]
        found = backtrack(self.model, images, distance, STARTS, STEPS, progress=lambda k: progress(k / STEPS))
        return Picture(found.images[0], found.latents, "a projected photo")

    def save(self, picture: Picture, folder: Path) -> Path:
        """Write a picture as a PNG file whose metadata say how it was made. A picture always gets the same name.

        Raises:
            InputError: It cannot be written.
        """
        origin = Origin.of(self.maker, picture.codes, picture.made, picture.seed, picture.sample)
        file = folder / origin.name_of_file
        with writing(file, "make room there"):
            pixels = Image.fromarray(rearrange(picture.image, "c h w -> h w c").contiguous().numpy())
            save_picture(file, pixels, origin.text)
        return file

    def load(self, file: Path) -> Picture:
        """Read a picture that was saved, and draw it again.

        Raises:
            InputError: Another model made it, or it is damaged.
        """
        origin, codes = codes_of(file, self.maker, self.model.latent_dim)
        return Picture(draw(self.model, codes[None])[0], codes, origin.made, origin.seed, origin.sample)

    def saved(self, folder: Path) -> list[Picture]:
        """The pictures of this model in a folder, the newest first; other files are left out."""
        pictures = []
        for file in sorted(folder.glob("*.png"), key=lambda file: -file.lstat().st_mtime):
            try:
                pictures.append(self.load(file))
            except InputError:
                continue
        return pictures
