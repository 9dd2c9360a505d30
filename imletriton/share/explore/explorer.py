"""A model to play with: what the page of `imletriton explore` shows, without the page."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from imletriton.data.folder import BrokenImage, read_image
from imletriton.distance import Distance, as_float
from imletriton.errors import InputError
from imletriton.generator import latent_codes, slerp
from imletriton.plotting.grids import save_picture
from imletriton.recipe import recipe_of
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.share.origin import Maker, Origin, codes_of, near
from imletriton.share.project import project_images
from imletriton.share.variations import draw, mixed, neighbours
from imletriton.share.views import CANDIDATES, Shown, Unsuitable
from imletriton.system.checks import check_device, check_extra
from imletriton.system.device import choose_device
from imletriton.system.registry import shown
from imletriton.training.build import make_distance, perceptual_settings

STARTS, STEPS = 32, 100  # of the search for a photo's latent code
PARTS = ("coarse", "middle", "fine")  # of a decoder's blocks


@dataclass(frozen=True)
class Picture:
    """A picture that a model has made, and what it was made from."""

    image: Tensor  # uint8 [3, H, W]
    codes: Tensor  # its latent code, float32 [1, latent_dim]; or those of its coarse, middle and fine blocks, [3, ...]
    made: str  # how it came about, for people
    seed: int | None = None  # of which it is a sample
    sample: int | None = None  # the number of the sample


class Nearest(NamedTuple):
    """The training picture that is nearest to a picture."""

    image: Tensor  # uint8 [3, H, W]
    number: int  # in the order of the training pictures
    distance: float  # to the picture
    spacing: float  # the distance of the training picture to its own nearest other one


class Explorer:
    """A model, and what can be done with its pictures.

    Args:
        source: The model.
        device: Where it runs.

    Raises:
        InputError: It generates points, not pictures.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device = source, device
        self._shown, self._lock = Shown(source), threading.Lock()
        self._shown.device = device
        self.model, self.maker = self._shown.model.requires_grad_(False), Maker.of(source)
        if len(self.model.shape) != 3:
            raise InputError(f"{source.name} generates points, not pictures: `imletriton show` draws them.")

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
        """Both pictures, and the six mixes of their coarse, middle and fine styles between them.

        Raises:
            InputError: The model's decoder has no blocks.
        """
        choices = sorted(product((False, True), repeat=3), key=lambda parts: (sum(parts), [not p for p in parts]))
        codes = torch.stack([mixed(one.codes, other.codes, (a, b, c)) for a, b, c in choices])
        names = [", ".join(name for name, taken in zip(PARTS, parts, strict=True) if taken) for parts in choices]
        drawn = [
            Picture(image, z, f"{one.made} with {taken} of {other.made}"[:200])
            for image, z, taken in zip(draw(self.model, codes), codes, names, strict=True)
        ]
        return [replace(one, image=drawn[0].image), *drawn[1:-1], replace(other, image=drawn[-1].image)]

    def between(self, one: Picture, other: Picture, t: float) -> Picture:
        """A picture on the way from one to another, with t from 0 to 1."""
        k = max(len(one.codes), len(other.codes))
        codes = slerp(one.codes.expand(k, -1), other.codes.expand(k, -1), t)
        made = f"{t:.0%} of the way from {one.made} to {other.made}"[:200]
        return Picture(draw(self.model, codes[None])[0], codes, made)

    @cached_property
    def distance(self) -> Distance:
        """The distance by which photos are projected and training pictures compared."""
        recipe = recipe_of(self.source)
        settings = perceptual_settings(recipe.distance if recipe else None, self.resolution)
        return make_distance(settings, self.model.shape, seed=0).to(self.device)

    @cached_property
    def _features(self) -> Tensor:
        """The search features of the training pictures, float32 [n, d]."""
        return torch.cat([self.distance.features(part.to(self.device)) for part in self._shown.points.split(64)])

    @torch.no_grad()
    def nearest(self, picture: Picture) -> Nearest:
        """The nearest training picture. Search features propose CANDIDATES, and the distance decides.

        Raises:
            InputError: The training pictures are not at hand; the message says why.
        """
        with self._lock:  # several visitors may ask for the first one
            try:
                points, features = self._shown.points, self._features
            except Unsuitable as reason:
                raise InputError(f"{self.source.name} has no training pictures to compare with: {reason}.") from None
        image = picture.image[None].to(self.device)
        near = torch.cdist(self.distance.features(image), features)[0].topk(min(CANDIDATES, len(points)), largest=False)
        among = points[near.indices.cpu()].to(self.device)
        distances = self.distance.loss(as_float(image.expand_as(among)), among)
        best = int(distances.argmin())
        number = int(near.indices[best])
        return Nearest(points[number], number, float(distances[best]), self._spacing(number))

    def _spacing(self, number: int) -> float:
        """The distance of a training picture to its nearest other one, which is not its mirror image."""
        points, features = self._shown.points, self._features
        others = torch.cdist(features[number : number + 1], features)[0]
        for k in (number, number + len(points) // 2, number - len(points) // 2):
            if k == number or (self._shown.recipe.data.mirror and 0 <= k < len(points)):
                others[k] = torch.inf
        among = points[others.topk(min(CANDIDATES, len(points) - 1), largest=False).indices.cpu()].to(self.device)
        picture = as_float(points[number : number + 1].to(self.device)).expand(among.shape)
        return float(self.distance.loss(picture, among).min())

    def project(self, file: Path, progress: Callable[[float], None] = lambda share: None) -> Picture:
        """The picture that is nearest to a photo; or, where the file was saved from this model, that picture itself.

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
        try:
            photo = torch.from_numpy(np.array(read_image(file, self.resolution)))
        except BrokenImage as error:
            raise InputError(f"This photo cannot be read ({error}): take another one.") from error
        images = rearrange(photo, "h w c -> 1 c h w")
        found = project_images(self.model, images, self.distance, STARTS, STEPS, progress=lambda k: progress(k / STEPS))
        return Picture(found.images[0], found.latents, "a projected photo")

    def save(self, picture: Picture, folder: Path) -> Path:
        """Write a picture as a PNG file whose metadata tells from what it was made; the same picture has one name.

        Raises:
            InputError: It cannot be written.
        """
        origin = Origin.of(self.maker, picture.codes, picture.made, picture.seed, picture.sample)
        file = folder / origin.name_of_file
        try:
            pixels = Image.fromarray(rearrange(picture.image, "c h w -> h w c").contiguous().numpy())
            save_picture(file, pixels, origin.text)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}): make room there.") from error
        return file

    def load(self, file: Path) -> Picture:
        """Read a picture that was saved; it is drawn anew.

        Raises:
            InputError: It was not made by this model, or is damaged.
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


def explore(
    source: str | PathLike[str] | Source | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: "str | torch.device | None" = None,
    keep: bool = True,
    ready: Callable[[str], object] = print,
) -> None:
    """Show a page to play with a model in a browser, until this process is interrupted.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`.
        host: The address to listen on; by default, only this machine can open the page.
        port: The port; None for the first free one from 7860 on.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        keep: Whether the page saves favourites in RUN/favourites; else they can only be downloaded.
        ready: Called with the page's address once it can be opened.

    Raises:
        InputError: Gradio is not installed, the source cannot be used, or the address cannot be listened on.
    """
    opened = check_explore(source, port, None if device is None else str(device)).now()
    with still_there(opened.checkpoint):
        explorer = Explorer(opened, choose_device(device))

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which would ask its makers' server
    from imletriton.share.explore.server import serve  # here, as Gradio loads slowly

    serve(explorer, host, port, opened.run.favourites if keep else None, ready)


def check_explore(source: str | PathLike[str] | Source | None, port: int | None, device: str | None) -> Source:
    """Check what `explore` is given, whose arguments these are.

    Returns:
        The opened source.

    Raises:
        InputError: Gradio is not installed, the port or the device is not known, or the source cannot be used.
    """
    check_extra("gradio", "explore")
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"`port` must be from 0 to 65535, not {shown(port)}.")
    if device is not None:
        check_device(device)
    return open_source(source)
