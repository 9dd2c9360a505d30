"""A loop through what a model can draw, as a video: `imletriton show video`."""

import importlib.util
import itertools
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from imletriton.errors import InputError, notice
from imletriton.runs.opening import Source, open_source
from imletriton.runs.run import write_whole
from imletriton.system.checks import MAX_SEED, check_device, check_writable
from imletriton.training.reporter import Progress, silent

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    import torch

VIDEO = "video"  # what `show` calls it
MAX_SECONDS, MAX_GRID = 600, 16
RATE = 25  # frames a second, which is a whole number of milliseconds for each
WIDTH = 512  # pixels that a frame is enlarged to, at most
WIDEST = 4096  # pixels that a side of a frame may have
MEND = "choose another file with `out`"


def video(
    source: str | PathLike[str] | Source | None = None,
    out: str | Path | None = None,
    seconds: float = 10.0,
    seeds: Sequence[int] | None = None,
    grid: tuple[int, int] = (1, 1),
    device: "str | torch.device | None" = None,
    progress: Progress = silent,
) -> Path:
    """Film samples that change smoothly from one to the next, and at the end into the first.

    Latent codes move on a closed curve near the sphere on which normal ones lie; see `latent_loop`. When it passes a
    seed, the frame shows the first samples that `generate` writes for that seed.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        out: The file, MP4 or animated WebP by its name; by default RUN/figures/video.mp4 where the extra "video" is
            installed, else video.webp, which a notice tells.
        seconds: How long the loop takes.
        seeds: The random seeds that it passes, at least two; by default one for every two seconds, and three at least.
        grid: How many pictures a frame has, in columns and rows.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        progress: Called with "frames", the number of frames done so far, and their total.

    Returns:
        The file, which is written as a whole or not at all.

    Raises:
        InputError: The source cannot be used or generates points, a number is out of range, the extra is missing for
            an MP4 file, or the file cannot be written.
    """
    check_device(device)
    if not 1 <= seconds <= MAX_SECONDS:
        raise InputError(f"`seconds` must be from 1 to {MAX_SECONDS}, not {seconds:g}.")
    if seeds is not None and (len(seeds) < 2 or not all(0 <= seed <= MAX_SEED for seed in seeds)):
        raise InputError("`seeds` must be at least two numbers from 0 to 2^32 - 1, such as 1,5,9.")
    if not all(1 <= side <= MAX_GRID for side in grid):
        raise InputError(f"`grid` must be from 1x1 to {MAX_GRID}x{MAX_GRID}, not {grid[0]}x{grid[1]}.")
    opened = open_source(source)
    file = _file(opened, out)

    import torch

    from imletriton.generator import latent_codes, latent_loop
    from imletriton.generator.model import SAMPLE_BATCH
    from imletriton.plotting.grids import image_grid
    from imletriton.share.model import Loaded

    model = Loaded(opened, device).picture_model
    if max(grid) * model.shape[-1] > WIDEST:
        raise InputError(
            f"A frame of {grid[0]}x{grid[1]} pictures is more than {WIDEST} pixels wide: choose a smaller `grid`."
        )
    passed = range(max(3, round(seconds / 2))) if seeds is None else seeds
    keys = torch.stack([latent_codes(0, grid[0] * grid[1], model.latent_dim, seed=seed) for seed in passed])
    count, at_once = round(seconds * RATE), SAMPLE_BATCH // math.gcd(SAMPLE_BATCH, keys.shape[1])  # in whole batches

    def frames() -> Iterator[Image.Image]:
        progress("frames", 0, count)
        for first in range(0, count, at_once):
            numbers = range(first, min(first + at_once, count))
            images = model.draw(torch.cat([latent_loop(keys, k / count) for k in numbers]))
            for k, sheet in zip(numbers, images.chunk(len(numbers)), strict=True):
                yield image_grid(sheet, grid[0], WIDTH)
                progress("frames", k + 1, count)

    write = _write_webp if file.suffix.lower() == ".webp" else _write_mp4
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda unfinished: write(unfinished, frames(), count))
    except OSError as error:
        reason = error.strerror or "ffmpeg stopped early, as on a full disk"
        raise InputError(f"{file} cannot be written ({reason}): {MEND}.") from error
    return file


def _file(opened: Source, out: str | Path | None) -> Path:
    """The video's file, which has been checked."""
    makes_mp4 = importlib.util.find_spec("imageio_ffmpeg") is not None
    install = '`pip install "imletriton[video]"`'
    if out is not None and (suffix := Path(out).suffix.lower()) not in (".mp4", ".webp"):
        raise InputError(f"{out} is named neither like an MP4 file nor like a WebP file: end `out` in .mp4 or .webp.")
    if out is not None and suffix == ".mp4" and not makes_mp4:
        raise InputError(f"{out} needs ffmpeg: install it by {install}, or end `out` in .webp.")
    file = Path(out) if out else opened.run.figure(VIDEO).with_suffix(".mp4" if makes_mp4 else ".webp")
    if file.is_dir():
        raise InputError(f"{file} is a folder: {MEND}.")
    check_writable(file.parent, file, MEND)
    if out is None and not makes_mp4:
        notice(f"The video will be a WebP file, as an MP4 file needs ffmpeg: {install}.")
    return file


def _write_mp4(file: Path, frames: Iterator[Image.Image], count: int) -> None:
    """Write frames as H.264, which every browser plays. Raises OSError where ffmpeg does not write all of them."""
    import imageio_ffmpeg

    first = next(frames)
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"  # as H.264 has one colour for four pixels
    options = ["-crf", "18", "-vf", even, "-movflags", "+faststart", "-f", "mp4"]
    writer = imageio_ffmpeg.write_frames(
        str(file), first.size, fps=RATE, codec="libx264", quality=None, macro_block_size=1, output_params=options,
        ffmpeg_log_level="fatal", ffmpeg_timeout=0,
    )  # fmt: skip
    writer.send(None)
    for frame in itertools.chain([first], frames):
        writer.send(frame.tobytes())
    writer.close()
    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(file))
    except RuntimeError:  # there is no video, or only the beginning of one
        written = 0
    if written != count:
        raise OSError("ffmpeg did not write all frames")


def _write_webp(file: Path, frames: Iterator[Image.Image], count: int) -> None:
    """Write frames as an animated WebP that repeats for ever."""
    film = _Film(frames, count)
    film.save(file, "WEBP", save_all=True, duration=1000 // RATE, loop=0, quality=85, method=2)


class _Film(Image.Image):
    """Frames as Pillow asks for them when it writes several: one after another, so that one alone is in memory."""

    def __init__(self, frames: Iterator[Image.Image], count: int) -> None:
        super().__init__()
        self.frames, self.n_frames, self.at = frames, count, -1
        self.seek(0)

    def seek(self, frame: int) -> None:
        if frame <= self.at:  # back at the end, which shows nothing
            return
        picture = next(self.frames)
        self.im, self._mode, self._size, self.at = picture.im, picture.mode, picture.size, frame
