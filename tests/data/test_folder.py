"""What a folder of pictures may hold besides good pictures."""

import os
import re
import socket
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, run_cli
from PIL import Image

from imletriton.data import load_points
from imletriton.data.files import list_images, skipped
from imletriton.data.folder import BrokenImage, read_image
from imletriton.errors import InputError, Notice


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for k in range(3):
        Path(f"pictures/{k}.png").write_bytes(picture(k))
    return Path("pictures")


def notes(folder: Path) -> list[str]:
    with pytest.warns(Notice) as told:
        assert len(load_points(str(folder), 4)) == 3
    return [str(notice.message) for notice in told]


def test_pipes_devices_and_sockets_are_no_pictures_and_never_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(folder / "socket.bmp"))
        assert notes(folder) == ["Not taken for pictures in pictures: pipes, devices or sockets (3)."]


def test_what_is_left_out_is_told(folder: Path) -> None:
    for name in ("a.gif", "b.GIF", "notes.txt", "README", ".hidden.png"):
        (folder / name).write_bytes(picture())
    Path("elsewhere").mkdir()
    Path("elsewhere/a.png").write_bytes(picture())
    (folder / "link").symlink_to(Path("elsewhere").resolve())
    (folder / "3.png").symlink_to(Path("elsewhere/a.png").resolve())
    (folder / "2.png").unlink()
    words = r"symbolic links to folders \(1\)|\.gif files \(2\)|\.txt files \(1\)|hidden pictures \(1\)|a suffix \(1\)"
    (note,) = notes(folder)
    assert note.startswith("Not taken for pictures in pictures: .gif files (2), ")
    assert len(re.findall(words, note)) == 5
    for k in range(10):
        (folder / f"a.kind{k}").touch()
    assert skipped(folder).endswith(", other files (9).")


def test_a_folder_of_other_files_only_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(picture())
    with pytest.raises(InputError, match=r"holds no images \(\.bmp, .*\), but \.gif files \(1\): give a folder"):
        list_images(tmp_path)


@pytest.mark.parametrize("source", ["~nobody-has-this-name/pictures", "x" * 5000, "a\0b"])
def test_a_source_that_no_folder_can_have_is_told(source: str) -> None:
    with pytest.raises(InputError, match="is not a folder: give a folder of images"):
        load_points(source, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [11_000, 14_000, 2**31 - 1])
def test_a_picture_of_too_many_pixels_is_told_not_decoded(folder: Path, side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    Path("pictures/bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"1 of 4 images .* cannot be read: bomb\.png \(.*120,000,000"):
        load_points(str(folder), 4)


def test_a_file_too_large_for_a_picture_is_not_read(folder: Path) -> None:
    with Path("pictures/large.webp").open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBPVP8 ")
        file.truncate(2 << 30)  # takes no room on the disk
    with pytest.raises(InputError, match=r"large\.webp \(a file of 2,147,483,648 bytes, where"):
        load_points(str(folder), 4)


def test_only_the_formats_of_the_suffixes_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # where Ghostscript would be
    Path("pictures/a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    Image.new("RGB", (9, 9)).save("pictures/b.png", format="GIF")
    with pytest.raises(InputError, match=r"2 of 5 .*a\.png \(not a PNG, JPEG, WebP, BMP or TIFF file\), b\.png \(not"):
        load_points(str(folder), 4)
    Image.new("RGB", (9, 9)).save("pictures/c.png", format="JPEG")
    assert read_image(Path("pictures/c.png"), 4).shape == (4, 4, 3)


def test_a_list_of_broken_files_is_cut_at_twenty(folder: Path) -> None:
    for k in range(30):
        (folder / f"bad{k:02}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^30 of 33 images .*bad19\.png \([^()]*\) and 10 more; repair") as told:
        load_points(str(folder), 4)
    assert "bad20" not in str(told.value)


@pytest.mark.filterwarnings("ignore::imletriton.errors.Notice")
def test_names_cannot_steer_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"\x1b[31mred\n.png", b"not utf-8 \xff.png", "right to left \u202e.png".encode()):
        Path(os.fsdecode(b"pictures/" + name)).write_bytes(b"no picture")
    (folder / "a.\x1b[2J").touch()
    with pytest.raises(InputError) as told:
        load_points(str(folder), 4)
    for name in (r"\x1b[31mred\n.png", r"not utf-8 \udcff.png", r"right to left \u202e.png"):
        assert name in str(told.value)
    assert r".\x1b[2j files (1)" in skipped(folder)
    assert run_cli(monkeypatch, "data", "check", "pictures") == 2
    out, error = capsys.readouterr()
    assert r"\x1b[31mred\n.png (not a PNG" in out
    assert "\x1b" not in out + error


def test_fit_and_check_say_what_they_leave_out(
    folder: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.gif").write_bytes(picture())
    assert run_cli(monkeypatch, "data", "check", "pictures") == 0
    assert "Not taken for pictures in pictures: .gif files (1)." in capsys.readouterr().out
    settings = ["data.source=pictures", "train.iterations=1", "log.fid_every=0"]
    assert run_cli(monkeypatch, "fit", str(recipe_file), *(part for s in settings for part in ("--set", s))) == 0
    assert "warning: Not taken for pictures in pictures: .gif files (1)." in capsys.readouterr().err


@pytest.mark.parametrize("tries", [150, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_damaged_pictures_are_read_or_told_and_nothing_else(tmp_path: Path, suffix: str, tries: int) -> None:
    """Whatever is wrong with a file, there is a picture or the one exception."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    file = tmp_path / f"a.{suffix}"
    options = {} if suffix == "bmp" else {"exif": exif}
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(file, **options)
    whole = file.read_bytes()
    broken = 0
    for _ in range(tries):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, min(len(damaged), 200 if rng.random() < 0.7 else len(damaged)), rng.integers(0, 8)):
            damaged[at] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            assert read_image(file, 4).shape == (4, 4, 3)
        except BrokenImage as error:
            broken += 1
            assert str(error).isprintable()
    assert 0 < broken < tries


def test_ctrl_c_stops_the_reading_at_once(folder: Path) -> None:
    for k in range(100):
        (folder / f"more{k}.png").write_bytes(picture(k))
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_points(str(folder), 4, progress=progress)
    assert seen == list(range(6))
    assert threading.active_count() < 5


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_points(str(folder), 4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_folder_below_that_may_not_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "closed").mkdir()
    scandir = os.scandir

    def scan(path: str) -> object:  # a test may be run by root, who may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(InputError, match="closed cannot be read"):
        load_points(str(folder), 4)
