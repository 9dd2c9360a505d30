"""The latent codes of photos: what `imletriton project` calls."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.data.folder import read_images
from imletriton.distance import Distance
from imletriton.errors import InputError, printable
from imletriton.generator import Generator
from imletriton.metrics.backtracking import Projection, backtrack
from imletriton.plotting.grids import image_grid, save_picture, titled
from imletriton.recipe import recipe_of
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.share.latents import SUFFIX, model_hash, save_latents
from imletriton.system.checks import MAKE_ROOM, check_device, check_writable
from imletriton.system.device import choose_device
from imletriton.training.build import make_distance, perceptual_settings
from imletriton.training.reporter import Progress, silent

STARTS, STEPS = 64, 100


def project_images(
    model: Generator,
    images: Tensor,
    distance: Distance,
    starts: int = STARTS,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Projection:
    """Find the latent codes whose samples are nearest to images.

    What is found for an image depends on the image, the model and the seed alone, not on the other images.

    Args:
        model: The generator. Its weights are frozen by this call.
        images: uint8 [n, 3, H, W], of the size that the model generates.
        distance: What is minimised, on the model's device.
        starts: How many random latent codes the search for each image begins with.
        steps: How many steps of optimisation.
        seed: The random seed of the starts.
        progress: Called with the number of steps done so far, out of n * steps.

    Returns:
        Latent codes, float32 [n, latent_dim], the samples that the model makes of them, uint8 [n, 3, H, W], and their
        distances to the images, float32 [n], all on the CPU.

    Raises:
        InputError: The model generates points, not pictures.
        ValueError: There are no images, they are of another size or type, or starts or steps are less than 1.
    """
    if len(model.shape) != 3:
        raise InputError("A model that generates points has no latent codes of pictures: take one that makes pictures.")
    if images.shape[1:] != model.shape or not len(images) or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 [n, {', '.join(map(str, model.shape))}], not {tuple(images.shape)}")
    if min(starts, steps) < 1:
        raise ValueError(f"starts and steps must be at least 1, not {starts} and {steps}")
    found = list[Projection]()
    for k, image in enumerate(images):  # each alone, as the number of an image decides what its search begins with

        def told(step: int, before: int = k * steps) -> None:
            progress(before + step)

        found.append(backtrack(model, image[None], distance, starts, steps, seed, told))
    return Projection(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class Projected(NamedTuple):
    """A photo that was projected."""

    photo: Path
    latents: Path  # the file with its latent code
    picture: Path  # the file with the photo, as the model would have made it, beside the photo
    distance: float  # between the two


def project(
    photos: Sequence[str | Path],
    source: str | PathLike[str] | Source | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    starts: int = STARTS,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Projected]:
    """Find the latent codes of photos, and draw each photo beside what the model makes of its code.

    Photos are turned as their EXIF data say, cropped to the central square and resized, as in training. The distance is
    LPIPS plus pixels where the weights of VGG16 are on this machine, else that of the recipe.

    Args:
        photos: The files.
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`.
        out: The folder for NAME.safetensors and NAME.png of each photo; by default RUN/projected.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        starts: How many random latent codes the search for each photo begins with.
        steps: How many steps of optimisation each photo gets.
        seed: The random seed of the starts.
        progress: Called with "projecting", the number of steps done so far, and their total.

    Returns:
        What was written, in the order of the photos.

    Raises:
        InputError: A photo cannot be read, the source cannot be used or generates points, or a file cannot be written.
    """
    opened, files, folder = check_project(source, photos, out, None if device is None else str(device))
    opened = opened.now()
    with still_there(opened.checkpoint):
        model = Generator.from_pretrained(opened).to(choose_device(device))
        weights = model_hash(opened.checkpoint)
    if len(model.shape) != 3:
        raise InputError(f"{opened.name} generates points, not pictures: `imletriton show` draws them.")
    images, _, broken = read_images(files, model.shape[-1])
    for k, reason in broken.items():
        raise InputError(f"{files[k]} cannot be read ({reason}): give other photos.")
    recipe = recipe_of(opened)
    settings = perceptual_settings(recipe.distance if recipe else None, model.shape[-1])
    distance = make_distance(settings, model.shape, seed=0).to(next(model.parameters()).device)
    projected, total = list[Projected](), steps * len(files)
    progress("projecting", 0, total)
    for k, (file, image) in enumerate(zip(files, torch.from_numpy(images), strict=True)):

        def told(step: int, before: int = k * steps) -> None:
            progress("projecting", before + step, total)

        found = project_images(model, image[None], distance, starts, steps, seed, told)
        value = float(found.distance)
        facts = {"model": weights, "photo": printable(file.name), "distance": f"{value:.6g}", "by": settings.label}
        title = f"{printable(file.stem)}, and by {opened.title} ({settings.label} {value:.3g})"
        picture = titled(image_grid(torch.cat([image[None], found.images]), columns=2), title)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_latents(latents := folder / f"{file.stem}{SUFFIX}", found.latents, facts)
            save_picture(drawn := folder / f"{file.stem}.png", picture)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}): {MAKE_ROOM}.") from error
        projected.append(Projected(file, latents, drawn, value))
    return projected


def check_project(
    source: str | PathLike[str] | Source | None,
    photos: Sequence[str | Path],
    out: str | Path | None,
    device: str | None,
) -> tuple[Source, list[Path], Path]:
    """Check what `project` is given, whose arguments these are.

    Returns:
        The opened source, the photos, and the folder for what is written.

    Raises:
        InputError: The source is not known, a photo is missing or no picture, two photos have one name, or the folder
            cannot be written.
    """
    from imletriton.data.folder import BrokenImage, open_image

    if device is not None:
        check_device(device)
    if not photos:
        raise InputError("project needs photos: name at least one picture.")
    files, names = [Path(photo).expanduser() for photo in photos], dict[str, Path]()
    for file in files:
        if file.is_dir():
            raise InputError(f"{file} is a folder: name the photos in it.")
        try:
            with open_image(file):
                pass
        except BrokenImage as error:
            raise InputError(f"{file} cannot be read ({error}): give other photos.") from error
        if file.stem in names:
            both = f"{names[file.stem]} and {file}"
            raise InputError(f"{both} would be written to one file: project them one by one, each into its own `out`.")
        names[file.stem] = file
    opened = open_source(source)
    folder = Path(out) if out else opened.run.projected
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder, which `out` must be: name another one.")
    check_writable(folder, folder, MAKE_ROOM)
    return opened, files, folder
