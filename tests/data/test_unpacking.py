"""Archives are refused by what they declare, before anything is written; test_catalogue.py has more of them."""

import io
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, zipped

from imletriton.data import unpacking
from imletriton.data.unpacking import MAX_BYTES, unpack
from imletriton.errors import InputError

KINDS = ["zip", "tar", "gz", "bz2", "xz"]


def archive(kind: str, entries: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped_file:
            for name, content in entries:
                zipped_file.writestr(name, content)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode=f"w:{'' if kind == 'tar' else kind}") as opened:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], str]:
    """refused(content) is what is told of an archive; nothing may be written before."""
    monkeypatch.setattr(unpacking.shutil, "copyfileobj", lambda *files: pytest.fail("something is written"))

    def tell(content: bytes) -> str:
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(InputError) as told:
            unpack(tmp_path / "archive", tmp_path / "set")
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]
        return str(told.value)

    return tell


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("a", "has the name of a folder"),
        ("b.png/c.png", "a file has the name of its folder"),
        ("b.png", "occurs twice"),
        (f"{'n' * 252}.png", "has a name that is too long"),
        (f"{'ü' * 126}.png", "has a name that is too long"),
        ("folder/" * 200 + "a.png", "has a name that is too long"),
        ("../c.png", "leads out of its folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_no_folder_can_hold_are_refused(
    refused: Callable[[bytes], str], kind: str, last: str, words: str
) -> None:
    entries = [("a/a.png", picture()), ("b.png", picture())]
    told = refused(archive(kind, [*entries, (last, picture())]))
    assert words in told and len(told) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_names_as_long_as_allowed_are_unpacked(tmp_path: Path, kind: str) -> None:
    name = f"set/{'n' * 251}.png"
    (tmp_path / "archive").write_bytes(archive(kind, [(name, picture()), ("set/b.png", picture())]))
    unpack(tmp_path / "archive", tmp_path / "set")
    assert len(list((tmp_path / "set").iterdir())) == 2


def declared(content: bytes, size: int) -> bytes:
    """A zip archive whose last entry declares another size."""
    at = content.rindex(b"PK\1\2") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def test_a_zip_that_declares_too_much_is_refused(refused: Callable[[bytes], str]) -> None:
    two = zipped({"a.png": picture(), "b.png": picture()})
    assert "entry 'b.png' exceeds the limit of 100,000 files or 4 GiB" in refused(declared(two, 2**32 - 2))


def test_a_zip_that_holds_more_than_it_declares_is_told(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.png", bytes(50 << 20))
    (tmp_path / "archive").write_bytes(declared(file.getvalue(), 10))
    with pytest.raises(InputError, match="is damaged or not an archive"):
        unpack(tmp_path / "archive", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


FIRST = header("a.png", 512) + bytes(512)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (FIRST + header("b.png", MAX_BYTES), "entry 'b.png' exceeds the limit"),
        (FIRST + header("b.png", -(1 << 40)), "is damaged or not an archive"),
        (FIRST + header("__MACOSX/a", MAX_BYTES), "exceeds the limit"),
        (
            FIRST + header("@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME),
            r"damaged or not an archive \(a header of 1,0",
        ),
        (FIRST + header("pax", 1 << 40, tarfile.XHDTYPE), r"damaged or not an archive \(a header of 1,0"),
        (FIRST + header("pax", 23, tarfile.XHDTYPE) + b"23 size=-99999999999999".ljust(512, b"\0"), "."),
        (header("pax", 1 << 40, tarfile.XGLTYPE), "is damaged or not an archive"),
    ],
    ids=["huge", "negative", "huge, left out", "long name", "long header", "negative in a header", "long at the start"],
)
def test_a_tar_that_declares_too_much_is_refused(refused: Callable[[bytes], str], members: bytes, words: str) -> None:
    assert re.search(words, refused(members + bytes(1024)))


def test_folders_count_among_the_files(refused: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_FILES", 10)
    folders = b"".join(header(f"{k}/", 0, tarfile.DIRTYPE) for k in range(11))
    assert "exceeds the limit" in refused(folders + bytes(1024))


@pytest.mark.parametrize("tries", [120, pytest.param(1200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_unpacked_or_told_and_nothing_else(tmp_path: Path, kind: str, tries: int) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    whole = archive(kind, [(f"set/ü{k}.png", picture(k)) for k in range(3)])
    unpacked = 0
    for k in range(tries):
        damaged = bytearray(whole[: rng.integers(len(whole))] if rng.random() < 0.2 else whole)
        for at in rng.integers(0, max(1, len(damaged)), rng.integers(0, 6)):
            damaged[at : at + 1] = bytes([rng.integers(256)])
        (tmp_path / "archive").write_bytes(damaged)
        try:
            unpack(tmp_path / "archive", tmp_path / str(k))
            unpacked += 1
        except InputError as error:
            assert str(error).isprintable()
            assert not (tmp_path / str(k)).exists()
    assert len(list(tmp_path.iterdir())) == unpacked + 1
    assert 0 < unpacked < tries
