"""What servers may send, and what may lie where the archives are kept; test_catalogue.py has how downloads go on."""

import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DOGS, Source, run_cli

from imletriton.data import catalogue, fetching
from imletriton.data.fetching import CHUNK, download_size, get
from imletriton.data.files import list_images
from imletriton.errors import InputError

DOG = catalogue.find("dog")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What a server sends, byte for byte: the answers to one request after another, the last one again and again."""
    sent: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(sent.pop(0) if len(sent) > 1 else sent[0])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("IMLETRITON_DATASETS_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield sent
        server.shutdown()


def answer(status: str, *headers: str, content: bytes = DOGS) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + content


def partial(start: int, content: bytes = DOGS) -> bytes:
    return answer("206 Partial Content", f"Content-Range: bytes {start}-{len(DOGS) - 1}/{len(DOGS)}", content=content)


def leave_part(content: bytes) -> None:
    Path("datasets/.archives").mkdir(parents=True)
    Path("datasets/.archives/AnimalFace-dog.zip.part").write_bytes(content)


@pytest.mark.parametrize("wrong", [partial(0), partial(CHUNK - 1), answer("206 Partial Content")])
def test_a_part_other_than_asked_for_is_never_joined(answers: list[bytes], wrong: bytes) -> None:
    leave_part(DOGS[:CHUNK])
    answers += [wrong, partial(0)]
    get("dog")
    assert Path("datasets/.archives/AnimalFace-dog.zip").read_bytes() == DOGS


def test_a_server_that_never_sends_the_part_asked_for_is_told(answers: list[bytes]) -> None:
    answers += [partial(5)]
    with pytest.raises(InputError, match=r"cannot be fetched \(the server sends another part of the file than it was"):
        get("dog")


LENGTHS = ["many", "-1", "1e9", "\xb2", "9" * 5000, "", "12, 13", "0x10"]


@pytest.mark.parametrize("length", LENGTHS, ids=[repr(length[:9]) for length in LENGTHS])
def test_a_length_that_is_no_number_is_no_length(answers: list[bytes], length: str) -> None:
    answers += [answer("200 OK", f"Content-Length: {length}")]
    assert download_size(DOG) is None
    told: list[int | None] = []
    try:
        get("dog", progress=lambda done, total: told.append(total))
    except InputError as error:
        assert "cannot be fetched (no connection, or it broke off)" in str(error)
    else:
        assert set(told) == {None}
        assert len(list_images("datasets/AnimalFace-dog")) == 3


GARBAGE = {
    "nothing": b"",
    "no HTTP": b"\0\xff\r\n\r\n",
    "a status of letters": answer("OK OK"),
    "a redirect to nowhere": answer("302 Found", "Location: http://[::bad"),
    "a redirect to a name too long": answer("302 Found", f"Location: http://{'a' * 300}.invalid/"),
    "a redirect to a file": answer("302 Found", "Location: file:///etc/passwd"),
    "a circle": answer("302 Found", "Location: /"),
    "broken chunks": answer("200 OK", "Transfer-Encoding: chunked", content=b"zz\r\nabc"),
    "broken gzip": answer("200 OK", "Content-Encoding: gzip", content=b"no gzip"),
    "broken off": answer("200 OK", f"Content-Length: {len(DOGS)}", content=DOGS[:9]),
    "a header without end": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100_000,
    "a page": answer("200 OK", content=b"<html>Please log in</html>"),
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_whatever_a_server_sends_is_told_in_a_sentence(answers: list[bytes], sent: bytes) -> None:
    answers += [sent]
    assert download_size(DOG) in (None, len(DOGS))
    with pytest.raises(InputError, match=r"cannot be fetched|is damaged or not an archive"):
        get("dog")
    assert not Path("datasets/AnimalFace-dog").exists()


@pytest.mark.parametrize("url", ["no address", "http://", "http://[", "ftp://a.invalid", f"http://{'a' * 70}.invalid"])
def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("IMLETRITON_DATASETS_URL", url)
    assert download_size(DOG) is None
    with pytest.raises(InputError, match=r"AnimalFace-dog\.zip cannot be fetched"):
        get("dog")


@pytest.mark.parametrize("declared", [True, False])
def test_an_archive_without_end_does_not_fill_the_disk(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", CHUNK)
    answers += [answer("200 OK", *([f"Content-Length: {len(DOGS)}"] if declared else []))]
    with pytest.raises(InputError, match=r"cannot be fetched \(it has more than 0 GiB\)"):
        get("dog")
    assert [path.name for path in Path("datasets/.archives").iterdir()] == [".lock"]


def as_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0not utf-8")


@pytest.mark.parametrize(
    ("make", "words"),
    [(as_bytes, r"its SHA-256 differs.*remove AnimalFace-dog\.zip\.sha256"), (Path.mkdir, r"zip\.sha256 cannot be")],
)
def test_a_checksum_that_is_none_is_told(
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    words: str,
) -> None:
    Path("datasets/.archives").mkdir(parents=True)
    make(Path("datasets/.archives/AnimalFace-dog.zip.sha256"))
    assert run_cli(monkeypatch, "data", "get", "dog") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(words, error)
