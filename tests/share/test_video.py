import importlib.util
import resource
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import run_cli
from einops import rearrange
from PIL import Image

from imletriton.errors import InputError, Notice
from imletriton.generator import Generator
from imletriton.share.video import RATE, video


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint, of pictures that are large enough to be seen in a video."""
    torch.manual_seed(0)
    Generator(latent_dim=4, mapping_layers=1, width=8, blocks="4x1,8m4").save_pretrained(
        tmp_path / "run" / "checkpoints" / "000010"
    )
    return tmp_path / "run"


def frames_of(file: Path) -> np.ndarray:
    """The frames of an MP4 file, uint8 [k, H, W, 3]."""
    reader = imageio_ffmpeg.read_frames(str(file))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def test_a_video_passes_the_first_samples_of_each_seed_and_closes(run: Path) -> None:
    told: list[tuple[str, int, int]] = []
    file = video(run, seconds=3, seeds=[1, 5, 9], grid=(3, 2), device="cpu", progress=lambda *words: told.append(words))
    assert file == run / "figures" / "video.mp4"
    assert [path.name for path in file.parent.iterdir()] == ["video.mp4"]
    assert told[-1] == ("frames", 3 * RATE, 3 * RATE)
    frames = frames_of(file)
    assert frames.shape == (3 * RATE, 16 * 21, 24 * 21 - 0, 3)
    model = Generator.from_pretrained(run)
    for k, seed in enumerate([1, 5, 9]):
        sheet = rearrange(model.sample(6, seed=seed), "(r c) rgb h w -> (r h) (c w) rgb", c=3).numpy()
        seen = frames[k * RATE][10::21, 10::21]  # the middle of each pixel
        assert np.abs(seen.astype(int) - sheet).mean() < 10  # what a video loses
    steps = [np.abs(frames[k - 1].astype(int) - frames[k]).mean() for k in range(len(frames))]
    assert steps[0] < 2 * np.median(steps)  # from the last frame to the first one
    assert max(steps) < 6 * np.median(steps)


def test_an_animated_webp_needs_no_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name))
    with pytest.warns(Notice, match=r"WebP file, as an MP4 file needs ffmpeg: `pip install .imletriton\[video\].`"):
        file = video(run, seconds=1, device="cpu")
    assert file == run / "figures" / "video.webp"
    with Image.open(file) as picture:
        assert picture.n_frames > RATE // 2  # frames that are alike are written once
        assert picture.info["loop"] == 0
        duration = 0
        for k in range(picture.n_frames):
            picture.seek(k)
            picture.load()
            duration += picture.info["duration"]
        assert duration == 1000
        picture.seek(0)
        first = np.asarray(picture.convert("RGB"))[32::64, 32::64]
    sample = Generator.from_pretrained(run).sample(1)[0].permute(1, 2, 0).numpy()
    assert np.abs(first.astype(int) - sample).mean() < 10
    with pytest.raises(InputError, match=r"a.mp4 needs ffmpeg: install it by .*or end `out` in .webp"):
        video(run, run / "a.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".webp"])
def test_a_video_that_breaks_off_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    def draw(keys: torch.Tensor, t: float) -> torch.Tensor:
        if t > 0.5:
            raise OSError(28, "No space left on device")
        return keys[0]

    monkeypatch.setattr("imletriton.generator.latent_loop", draw)
    with pytest.raises(InputError, match=f"video{suffix} cannot be written .No space left on device.: choose another"):
        video(run, run / "out" / f"video{suffix}", seconds=1, device="cpu")
    assert list((run / "out").iterdir()) == []


def test_a_full_disk_leaves_no_part_of_a_video(run: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # no file may become larger, also in ffmpeg
    try:
        with pytest.raises(InputError, match=r"v\.mp4 cannot be written .*: choose another file with `out`"):
            video(run, tmp_path / "out" / "v.mp4", seconds=2, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_filmed_is_told(run: Path, tmp_path: Path) -> None:
    def fails(words: str, **arguments: object) -> None:
        with pytest.raises(InputError, match=words):
            video(**{"source": run, "device": "cpu"} | arguments)  # type: ignore[arg-type]

    fails("`seconds` must be from 1 to 600, not 0.5", seconds=0.5)
    fails("`seconds` must be from 1 to 600, not nan", seconds=float("nan"))
    fails("`seeds` must be at least two numbers", seeds=[3])
    fails("`seeds` must be at least two numbers", seeds=[3, -1])
    fails("`grid` must be from 1x1 to 16x16, not 0x2", grid=(0, 2))
    fails("a.gif is named neither like an MP4 file nor like a WebP file", out=tmp_path / "a.gif")
    (tmp_path / "folder.mp4").mkdir()
    fails(r"folder\.mp4 is a folder", out=tmp_path / "folder.mp4")
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path / "plane")
    fails("plane generates points, not pictures", source=tmp_path / "plane")


def test_the_command_line_films(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "v.webp")]
    assert (
        run_cli(monkeypatch, "show", str(run), "video", "--seconds", "1", "--seeds", "1,5", "--grid", "2x1", *out) == 0
    )
    with Image.open(tmp_path / "v.webp") as picture:
        assert picture.size == (512, 256)
    for flags, words in (
        (["video", "--grid", "3"], "--grid '3' is not known: write columns and rows such as 3x2."),
        (["video", "--seeds", "1;5"], "--seeds '1;5' is not a list of whole numbers"),
        (["video", "--seeds", "1"], "--seeds must be at least two numbers"),
        (["samples", "--seconds", "3"], "--seconds is for a video"),
        (["video", "--between", "a", "b"], "--between is not for a video"),
        (["video", "--device", "mps"], "--device 'mps' is not known"),
    ):
        assert run_cli(monkeypatch, "show", str(run), *flags) == 2
        assert words in capsys.readouterr().err
