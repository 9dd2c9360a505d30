import errno
import fcntl
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from PIL import Image

from imletriton.commands.gen import Generated, generate
from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes
from imletriton.runs.opening import open_source
from imletriton.share.latents import save_latents


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint."""
    torch.manual_seed(0)
    generator = Generator(latent_dim=4, mapping_layers=1, width=8, blocks="4x1,8m4")
    generator.save_pretrained(tmp_path / "run" / "checkpoints" / "000010")
    return tmp_path / "run"


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def test_samples_are_written_as_numbered_pngs(run: Path) -> None:
    folder, new, _ = generate(run, 20, seed=3)
    assert folder == run / "gen" / "000010-seed-3"
    assert new == 20
    assert [p.name for p in pictures(folder)] == [f"{k:06d}.png" for k in range(20)]
    expected = Generator.from_pretrained(run).sample(20, seed=3)
    for k, path in enumerate(pictures(folder)):
        assert np.array_equal(np.asarray(Image.open(path)), expected[k].permute(1, 2, 0).numpy())


def test_from_inside_a_run_samples_still_go_to_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert generate(Path("000010"), 1)[0] == run / "gen" / "000010-seed-0"
    monkeypatch.chdir(run)
    assert generate(Path(), 1)[0] == Path("gen") / "000010-seed-0"


def test_only_missing_samples_are_made(run: Path) -> None:
    folder = generate(run, 40).folder
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in pictures(folder)}
    lost = [folder / "000003.png", folder / "000037.png"]
    for path in lost:
        path.unlink()
    calls: list[tuple[str, int, int]] = []
    assert generate(run, 45, progress=lambda *told: calls.append(told)) == (folder, 7, 0)
    assert calls[0] == ("samples", 38, 45)
    assert calls[-1] == ("samples", 45, 45)
    assert len(pictures(folder)) == 45
    for path, (content, time) in before.items():
        assert path.read_bytes() == content
        assert path in lost or path.stat().st_mtime_ns == time
    assert generate(run, 45) == (folder, 0, 0)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-20],
    "flipped": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "text": lambda content: b"no picture",
}


def test_damaged_pictures_among_those_there_are_made_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate(run, 8).folder
    whole = [p.read_bytes() for p in pictures(folder)]
    for k, damage in enumerate(DAMAGE.values()):
        (folder / f"{k:06d}.png").write_bytes(damage(whole[k]))
    Image.new("RGB", (4, 4)).save(folder / "000005.png")  # of another size
    (folder / "000006.png").unlink()
    os.mkfifo(folder / "000006.png")
    (folder / ".000007.png.123").write_bytes(whole[7][:9])  # of a process that was killed
    assert run_cli(monkeypatch, "gen", str(run), "--n", "9") == 0
    assert "holds 9 samples: 7 made" in (shown := capsys.readouterr().out)
    assert "(6 of them were there, but damaged), 2 were there already." in shown
    assert [p.read_bytes() for p in pictures(folder)][:8] == whole
    assert {p.name for p in folder.iterdir()} == {*(f"{k:06d}.png" for k in range(9)), "gen.json"}


@pytest.mark.parametrize("length", [0, 1, 60])
def test_a_manifest_that_a_killed_process_left_unfinished_is_written_again(run: Path, length: int) -> None:
    folder = generate(run, 1).folder
    manifest, whole = folder / "gen.json", (folder / "gen.json").read_bytes()
    manifest.write_bytes(whole[:length])
    with pytest.raises(InputError, match="holds other files"):  # whose pictures these are, nobody knows
        generate(run, 1)
    (folder / "000000.png").unlink()
    assert generate(run, 1).new == 1
    assert manifest.read_bytes() == whole


def test_three_at_once_end_whole_or_say_why(run: Path) -> None:
    def one(_: int) -> Generated | str:
        try:
            return generate(run, 100)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(3) as workers:
        ends = list(workers.map(one, range(3)))
    folder = run / "gen" / "000010-seed-0"
    assert (folder, 100, 0) in ends
    for end in ends:
        assert "Another process is writing samples into" in end if isinstance(end, str) else end.new in (0, 100)
    assert generate(run, 100) == (folder, 0, 0)
    (folder / "gen.json").write_text("")  # killed as it began
    with pytest.raises(InputError, match="holds other files"):
        generate(run, 100)


def test_a_folder_that_another_process_writes_is_left_alone(run: Path) -> None:
    folder = generate(run, 1).folder
    with (folder / "gen.json").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"Another process is writing samples into .*`out=DIR`"):
            generate(run, 2)
    assert generate(run, 2).new == 1


def test_a_folder_named_like_a_picture_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.jpg is named like one picture, .*`out=DIR`"):
        generate(run, 1, out=tmp_path / "x.jpg")
    assert not (tmp_path / "x.jpg").exists()


def test_a_checkpoint_that_training_removes_meanwhile_is_told(run: Path) -> None:
    opened = open_source(run)
    shutil.rmtree(opened.checkpoint)
    with pytest.raises(InputError, match=r"000010 was removed while it was read.*: call this again"):
        generate(opened, 1)


def test_nothing_else_is_overwritten(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(run, 2, out=out)
    with pytest.raises(
        InputError, match=r"gen\.json says that the samples are of another model, seed or .*damaged: .*`out=DIR`"
    ):
        generate(run, 2, seed=1, out=out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        generate(run, 2, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "000000.png").read_text() == "precious"


def test_bad_sources_are_named(run: Path, tmp_path: Path) -> None:
    for n in (0, -3):
        with pytest.raises(InputError, match=f"`n` must be from 1 to 1000000, not {n}"):
            generate(run, n)
    with pytest.raises(InputError, match="is not a folder"):
        generate(tmp_path / "none", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        generate(tmp_path / "empty", 1)
    weights = run / "checkpoints" / "000010" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50])
    with pytest.raises(InputError, match="is damaged"):
        generate(run, 1)
    weights.write_bytes(whole)
    config = weights.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"width": 4}))
    with pytest.raises(InputError, match="another architecture"):
        generate(run, 1)
    assert not (run / "gen").exists()


def test_points_are_not_pictures(tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="points, not pictures"):
        generate(tmp_path, 1)


@pytest.mark.parametrize("folder", ["/proc/imletriton", "/sys/imletriton", "{tmp}/file/below"])
def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*`out=DIR`"):
        generate(run, 1, out=Path(folder.format(tmp=tmp_path)))


def test_a_full_disk_leaves_no_half_picture(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(picture: Image.Image, file: Path, *arguments: object, **more: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(
        InputError, match=r"out cannot be written \(No space left on device\): make room, or .*`out=DIR`"
    ):
        generate(run, 5, out=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gen.json"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A limit that a file without an end would reach."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_manifest_that_is_not_a_file_is_told_and_never_read(run: Path, tmp_path: Path, kind: str) -> None:
    """A device or a pipe could be read forever."""
    out = tmp_path / "out"
    out.mkdir()
    file = out / "gen.json"
    {"device": lambda: file.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}[kind]()
    with pytest.raises(InputError, match=r"gen\.json cannot be written"):
        generate(run, 1, out=out)


def test_latent_codes_say_how_many_samples_there_are(run: Path, tmp_path: Path) -> None:
    codes = latent_codes(0, 5, 4, seed=7)
    save_latents(file := tmp_path / "mine.safetensors", codes, {})
    folder = generate(run, latents=file).folder
    assert folder == run / "gen" / "000010-from-mine"
    expected = Generator.from_pretrained(run).sample(5, seed=7)
    assert np.array_equal(np.asarray(Image.open(folder / "000004.png")), expected[4].permute(1, 2, 0).numpy())
    assert generate(run, 5, latents=file).new == 0
    with pytest.raises(
        InputError, match=r"mine.safetensors decides on the number of samples, which is 5: leave `n` out\."
    ):
        generate(run, 6, latents=file)
    with pytest.raises(InputError, match="`distance` is how far samples are from a picture"):
        generate(run, distance=0.5)
