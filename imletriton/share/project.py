"""The latent codes of photos: `imletriton project`."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imletriton.data.folder import BrokenImage, open_image, read_images
from imletriton.errors import InputError, printable
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.share.latents import SUFFIX, model_hash, save_latents
from imletriton.system.checks import MAKE_ROOM, MAX_SEED, check_device, check_range, check_writable, writing
from imletriton.training.reporter import Progress, silent

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch

STARTS, STEPS = 64, 100


class Projected(NamedTuple):
    """A photo and its latent code."""

    photo: Path
    latents: Path  # the file with the latent code
    picture: Path  # the file with the photo and, beside it, what the model makes of the code
    distance: float  # between these two


def project(
    photos: Sequence[str | Path],
    source: str | PathLike[str] | Source | None = None,
    out: str | Path | None = None,
    device: "str | torch.device | None" = None,
    starts: int = STARTS,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda text: None,
) -> list[Projected]:
    """Find the latent codes of photos, and draw each photo beside what the model makes of its code.

    Photos are turned as their EXIF data say, cropped to the central square and resized, as in training. The distance is
    LPIPS plus pixels where the weights of VGG16 are on this machine, else that of the recipe. What is found for a photo
    depends on the photo, the model and the seed alone.

    Args:
        photos: The files.
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        out: The folder for NAME.safetensors and NAME.png of each photo; by default RUN/projected.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        starts: How many random latent codes the search for each photo begins with.
        steps: How many steps of optimisation each photo gets.
        seed: The random seed of the starts.
        progress: Called with "projecting", the number of steps done so far, and their total.
        note: Called with a sentence that names the newest run, where that is taken.

    Returns:
        One for each photo, in order.

    Raises:
        InputError: A photo is missing, damaged or not a picture, or two have one name; a number is out of range; the
            source cannot be used or generates points; or a file cannot be written.
    """
    files = _checked(photos)
    check_device(device)
    check_range("seed", seed, 0, MAX_SEED)
    if min(starts, steps) < 1:
        raise InputError(f"`starts` and `steps` must be at least 1, not {starts} and {steps}.")
    opened = open_source(source)
    if source is None:
        note(f"The newest run is {opened.run.path}.")
    folder = Path(out) if out else opened.run.projected
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder with `out=DIR`.")
    check_writable(folder, folder, MAKE_ROOM)

    import torch

    from imletriton.metrics.backtracking import backtrack
    from imletriton.plotting.grids import image_grid, save_picture, titled
    from imletriton.share.model import Loaded

    loaded = Loaded(opened, device)
    model = loaded.picture_model
    with still_there(loaded.source.checkpoint):
        weights = model_hash(loaded.source.checkpoint)
    images, _, broken = read_images(files, model.shape[-1])
    for k, reason in broken.items():
        raise InputError(f"{files[k]} cannot be read ({reason}): give other photos.")
    (distance, label), projected, total = loaded.perceptual, list[Projected](), steps * len(files)
    progress("projecting", 0, total)
    for k, (file, image) in enumerate(zip(files, torch.from_numpy(images), strict=True)):

        def told(step: int, before: int = k * steps) -> None:
            progress("projecting", before + step, total)

        found = backtrack(model, image[None], distance, starts, steps, seed, told)
        value = float(found.distance)
        facts = {"model": weights, "photo": printable(file.name), "distance": f"{value:.6g}", "by": label}
        title = f"{printable(file.stem)}, and by {loaded.source.title} ({label} {value:.3g})"
        picture = titled(image_grid(torch.cat([image[None], found.images]), columns=2), title)
        with writing(folder, MAKE_ROOM):
            folder.mkdir(parents=True, exist_ok=True)
            save_latents(latents := folder / f"{file.stem}{SUFFIX}", found.latents, facts)
            save_picture(drawn := folder / f"{file.stem}.png", picture)
        projected.append(Projected(file, latents, drawn, value))
    return projected


def _checked(photos: Sequence[str | Path]) -> list[Path]:
    """Check that photos are pictures of different names; their files."""
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
    return files
