"""Decoded pictures are kept where decoding took long; what is kept is never wrong and never grows without bound."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture
from torch import Tensor

from imletriton.data import cache, folder, load_points


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, in which every data set is kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "LONG", -1)
    fill("pictures")
    return tmp_path / "cache" / "imletriton" / "pictures"


def fill(name: str, first: int = 0, count: int = 3) -> None:
    Path(name).mkdir()
    for k in range(count):
        Path(f"{name}/{k}.png").write_bytes(picture(first + k))


def load(source: str = "pictures", resolution: int = 8) -> tuple[Tensor, list[str]]:
    """The data points, and what was told about them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return load_points(source, resolution), [str(warning.message) for warning in told]


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*arguments: object) -> None:
        raise AssertionError("the pictures are decoded again")

    monkeypatch.setattr(folder, "read_images", decode)


def test_the_second_start_decodes_nothing_and_gets_the_same(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, notes = load()
    (file,) = kept.iterdir()
    assert notes == []
    assert np.array_equal(np.load(file), first)
    forbid_decoding(monkeypatch)
    Path("pictures").rename("moved")  # the pictures count, not their names
    again, notes = load("moved")
    assert torch.equal(first, again) and again.dtype == torch.uint8
    assert notes == []
    again += 1  # whoever changes the tensor does not change the file
    assert torch.equal(first, load("moved")[0])


def test_pictures_that_are_decoded_quickly_are_not_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LONG", 5)
    assert load()[1] == []
    assert not kept.exists()


def test_a_changed_picture_is_never_taken_from_the_cache(kept: Path) -> None:
    load()
    file = Path("pictures/1.png")
    before, content = file.stat(), picture(9)
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    changed, _ = load()
    fill("fresh")
    Path("fresh/1.png").write_bytes(content)
    assert torch.equal(changed, load("fresh")[0])
    Path("pictures/0.png").rename("pictures/9.png")  # another order
    assert torch.equal(load()[0], changed[[1, 2, 0]])
    assert load(resolution=4)[0].shape == (3, 3, 4, 4)


def test_pictures_that_change_while_they_are_decoded_are_not_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, decode = Path("pictures/0.png").read_bytes(), folder.read_images

    def change_and_decode(*arguments: Any) -> folder.Decoded:
        Path("pictures/0.png").write_bytes(picture(7))
        return decode(*arguments)

    monkeypatch.setattr(folder, "read_images", change_and_decode)
    load()
    monkeypatch.setattr(folder, "read_images", decode)
    Path("pictures/0.png").write_bytes(old)
    now, _ = load()
    for file in kept.iterdir():
        file.unlink()
    assert torch.equal(now, load()[0])


def damage(content: bytes) -> dict[str, bytes]:
    return {
        "emptied": b"",
        "truncated": content[:-1],
        "a bit flipped": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "another shape": content.replace(b"(3, 3, 8, 8)", b"(3, 8, 3, 8)"),
        "a pickle": content.replace(b"'|u1'", b"'|O' "),
        "no header": b"\0" * len(content),
        "a deep header": content[:10] + b"(" * (len(content) - 10),
        "longer": content + b"\0",
    }


@pytest.mark.parametrize("kind", damage(b"\0" * 1000))
def test_a_damaged_file_is_told_and_made_anew(kept: Path, kind: str) -> None:
    first, _ = load()
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole)[kind])
    again, notes = load()
    assert torch.equal(first, again)
    assert notes[0] == f"The decoded pictures in {file} were damaged, so they are decoded anew."
    assert file.read_bytes() == whole


def test_the_cache_is_bounded_and_keeps_what_was_used_last(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    (first,) = kept.iterdir()
    size = first.stat().st_size
    monkeypatch.setattr(cache, "MAX_BYTES", int(2.5 * size))
    os.utime(first, (1, 1))
    (kept / ".half-written.npy").write_bytes(b"left by a process that was killed")
    os.utime(kept / ".half-written.npy", (0, 0))
    fill("second", 10)
    load("second")
    (second,) = {file for file in kept.iterdir() if not file.name.startswith(".")} - {first}
    os.utime(second, (2, 2))
    load()  # so the second one was used least recently
    fill("third", 20)
    load("third")
    assert second not in kept.iterdir() and first in kept.iterdir()
    assert len(list(kept.iterdir())) == 2
    monkeypatch.setattr(cache, "MAX_BYTES", size // 2)
    fill("fourth", 30)
    assert load("fourth")[1] == []
    assert len(list(kept.iterdir())) == 2  # what is larger than the whole cache pushes nothing out


def test_without_a_place_for_the_cache_the_pictures_are_there(kept: Path) -> None:
    kept.parent.parent.write_text("a file where the cache should be")
    assert load()[0].shape == (3, 3, 8, 8)
    assert load()[1] == []
