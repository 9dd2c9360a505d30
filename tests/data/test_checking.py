from pathlib import Path

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image, ImageOps

from imletriton.data.checking import check
from imletriton.errors import InputError


def scene(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Random soft patches: no two scenes are alike, nor is one like its mirror image."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for k in range(7):
        scene(k).save(f"pictures/{k}.png")
    return Path("pictures")


def pairs(folder: Path) -> dict[tuple[str, str], bool]:
    return {(pair.first, pair.second): pair.mirrored for pair in check(folder).duplicates}


def test_different_pictures_are_no_duplicates(folder: Path) -> None:
    assert pairs(folder) == {}


def test_copies_are_found_resized_recompressed_and_mirrored(folder: Path) -> None:
    scene(0).resize((96, 96)).save(folder / "resized.png")
    for name in ("3.png", "3.jpg"):
        scene(3, (128, 128)).save(folder / name)
    (folder / "sub").mkdir()
    ImageOps.mirror(scene(5)).save(folder / "sub" / "mirrored.png")
    found = check(folder).duplicates
    assert {(p.first, p.second): p.mirrored for p in found} == {
        ("0.png", "resized.png"): False,
        ("3.jpg", "3.png"): False,
        ("5.png", "sub/mirrored.png"): True,
    }
    assert [p.difference for p in found] == sorted(p.difference for p in found)
    assert all(0 <= p.difference < 4 / 255 for p in found)


@pytest.mark.parametrize("places", [(0, 1), (1, 2), (3, 4), (0, 6), (5, 6)])
def test_every_pair_of_places_is_compared(folder: Path, places: tuple[int, int]) -> None:
    first, second = places
    scene(first).save(folder / f"{second}.png")
    assert pairs(folder) == {(f"{first}.png", f"{second}.png"): False}


def test_every_copy_of_many_is_named(folder: Path) -> None:
    for k in (1, 2, 4, 6):
        scene(0).save(folder / f"{k}.png")
    assert {name for pair in pairs(folder) for name in pair} == {f"{k}.png" for k in (0, 1, 2, 4, 6)}


def test_reading_and_comparing_tell_how_far_they_are(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check(folder, progress=lambda *work: told.append(work))
    assert [work for work in told if work[0] == "pictures"] == [("pictures", k, 7) for k in range(1, 8)]
    assert [work for work in told if work[0] == "comparing"] == [("comparing", k, 14) for k in (0, 7, 14)]


def test_a_symmetric_picture_is_no_duplicate_of_itself(folder: Path) -> None:
    Image.new("RGB", (48, 48), "red").save(folder / "plain.png")
    assert pairs(folder) == {}


def test_sizes_and_small_images_are_told(folder: Path) -> None:
    scene(8, (300, 400)).save(folder / "large.png")
    scene(9, (20, 90)).save(folder / "least.png")
    found = check(folder, resolution=40)
    assert (found.images, found.sides, found.sizes, found.small) == (9, (20, 48, 300), 3, ["least.png"])


def test_one_image_is_enough_to_check(folder: Path) -> None:
    for k in range(1, 7):
        (folder / f"{k}.png").unlink()
    assert check(folder).sides == (48, 48, 48)


def test_a_good_folder_exits_with_0(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ImageOps.mirror(scene(0)).save(folder / "a.png")
    assert run_cli(monkeypatch, "data", "check", "pictures", "--resolution", "48") == 0
    told = capsys.readouterr().out
    assert "0.png and a.png mirrored" in told
    assert "48 to 48 pixels, median 48; distinct sizes: 1" in told


def test_broken_files_are_named_and_exit_with_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "no.jpg").write_bytes(b"no picture")
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:-40])
    assert run_cli(monkeypatch, "data", "check", "pictures") == 2
    told = capsys.readouterr()
    assert "no.jpg (" in told.out and "half.png (" in told.out
    assert told.err.endswith("\nerror: 2 of 9 images in pictures are broken: repair or remove them.\n")


def test_a_folder_that_cannot_be_checked_exits_with_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "data", "check", "nowhere") == 2
    assert capsys.readouterr().err == "error: nowhere is not a folder: give a folder of images.\n"
    Path("empty").mkdir()
    assert run_cli(monkeypatch, "data", "check", "empty") == 2
    assert "empty holds no images" in capsys.readouterr().err
    Path("empty/a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="None of the 1 images in empty can be read"):
        check(Path("empty"))
