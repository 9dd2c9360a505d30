"""Inputs that hypothesis makes of good ones: recipes, models, states of training and HTTP answers.

tests/data has damaged images and archives.

Each kind of input has a function that meets it as a command does. It may end well, or with the sentence of an
InputError; nothing else. Batches of inputs run in processes of their own, which have limits of memory and time.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w
import torch
from conftest import TINY, picture, zipped
from harness import forked
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from imletriton.data import count_points, fetching, load_points
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs.checkpoint import _sealed, load_checkpoint, newest_whole
from imletriton.runs.reading import Damaged
from imletriton.runs.trackers import check_trackers
from imletriton.training.build import build
from imletriton.training.memory import check_memory_early
from imletriton.training.state import restore

BATCH_SECONDS = 240  # for inputs that one process meets
INPUT_SECONDS = 20  # for one of them
BATCH = 250
SMALL = 2e6  # weights of generators that are built

# -- inputs -----------------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([-1, 0, 2**31, 2**32, 2**63, 10**18, -(2**63)]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["auto", "10n", "4x1,8m4,16m8", "1e9n", "../x", "/dev/zero", "nan", "x" * 5000, "\0", "[red]"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def changed_values(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """A nested dictionary like a good one, in which up to four values are hostile, missing, or under other names."""
    values: dict[str, Any] = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 4))):
        target = values
        inner = [value for value in values.values() if isinstance(value, dict)]
        if inner and draw(st.integers(0, 3)):
            target = draw(st.sampled_from(inner))
        key = draw(st.sampled_from([*target] or ["key"]))
        match draw(st.sampled_from(["value", "value", "value", "missing", "name"])):
            case "value":
                target[key] = draw(HOSTILE)
            case "missing":
                target.pop(key, None)
            case "name":
                target[draw(st.text(max_size=8))] = target.pop(key, None)
    return values


@st.composite
def changed_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """A content like a good one, in which bytes are changed, missing, or more."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        some = draw(st.binary(min_size=1, max_size=8))
        match draw(st.sampled_from(["change", "change", "insert", "cut", "repeat"])):
            case "change":
                content[at : at + len(some)] = some
            case "insert":
                content[at:at] = some
            case "cut":
                del content[at : at + draw(st.integers(1, len(content) + 1))]
            case "repeat":
                content[at:at] = content[at : at + 64] * draw(st.integers(1, 20))
    return bytes(content)


def toml_values(values: Any) -> Any:
    """The same without what TOML cannot hold."""
    if isinstance(values, dict):
        return {key: toml_values(value) for key, value in values.items() if value is not None}
    return values


def toml(values: dict[str, Any]) -> bytes:
    try:
        return tomli_w.dumps(toml_values(values)).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return repr(values).encode("utf-8", "surrogatepass")


def as_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


GOOD_ANSWER = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n"
    b"Content-Type: application/zip\r\nConnection: close\r\n\r\n"
)
HEADERS = ["Content-Range", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Location", "Content-Type", "X"]
HEADER_VALUES = [
    "",
    "-1",
    "0",
    "9" * 30,
    "bytes 0-1/2",
    "bytes */0",
    "gzip",
    "chunked",
    "x" * 70000,
    "http://[",
    "é\xff",
]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """What a web server may answer: changed bytes of a good answer, or other headers and status codes."""
    body = zipped({f"AnimalFace-dog/{k}.png": picture(k) for k in range(2)})
    good = GOOD_ANSWER % (len(body) - 1, len(body), len(body)) + body
    if draw(st.booleans()):
        return draw(changed_bytes(good))
    status = draw(st.sampled_from([200, 204, 206, 301, 302, 400, 403, 404, 416, 429, 500, 503, 999, 0]))
    names = st.sampled_from(HEADERS)
    headers = draw(st.lists(st.tuples(names, st.sampled_from(HEADER_VALUES) | st.text(max_size=9)), max_size=4))
    lines = [f"HTTP/1.1 {status} Some", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("utf-8", "replace") + body[: draw(st.integers(0, len(body)))]


# -- what meets them --------------------------------------------------------------------------------------------------


class Recipes:
    """What `fit` does with a recipe before training; small generators are built."""

    name = "recipes"

    def __init__(self, folder: Path) -> None:
        (folder / "good.toml").write_text(TINY)
        good = Recipe.load(folder / "good.toml").model_dump(mode="json")
        self.inputs = changed_values(good).map(toml) | changed_bytes(TINY.encode())
        self.points = load_points("faces", 16)

    def meet(self, content: bytes) -> None:
        Path("recipe.toml").write_bytes(content)
        recipe = Recipe.load("recipe.toml")
        check_trackers(recipe.log.trackers)
        recipe.selection.pool_size(count_points(recipe.data.source, recipe.data.mirror, recipe.data.holdout))
        check_memory_early(recipe, "cpu")
        if recipe.data.source == "faces" and recipe.data.resolution == 16 and _weights(recipe) < SMALL:
            build(recipe, self.points, torch.device("cpu"))


def _weights(recipe: Recipe) -> float:
    return float(recipe.generator.cost(False).weights)


class Configs:
    """config.json of a model."""

    name = "config.json"

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "run/checkpoints/000030/config.json").read_text())
        self.inputs = changed_values(config).map(as_json) | changed_bytes(as_json(config))
        shutil.copytree(folder / "run/checkpoints/000030", "model")
        for name in ("trainer.json", "trainer.safetensors"):
            Path("model", name).unlink()

    def meet(self, content: bytes) -> None:
        Path("model/config.json").write_bytes(content)
        Generator.from_pretrained("model")


class Tensors(Configs):
    """The header of model.safetensors."""

    name = "safetensors headers"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        content = Path("model/model.safetensors").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:start]), content[start:]

        def with_header(text: bytes) -> bytes:
            return len(text).to_bytes(8, "little") + text + data

        changed = changed_values(header).map(as_json) | changed_bytes(as_json(header))
        self.inputs = changed.map(with_header) | changed_bytes(content[: start + 64]).map(lambda start: start + data)

    def meet(self, content: bytes) -> None:
        Path("model/model.safetensors").write_bytes(content)
        Generator.from_pretrained("model")


class States:
    """trainer.json of the newest checkpoint, with sums that match, as `fit --resume` reads it."""

    name = "trainer.json"

    def __init__(self, folder: Path) -> None:
        shutil.copytree(folder / "run", "run")
        self.file = Path("run/checkpoints/000030/trainer.json")
        state = json.loads(self.file.read_text())
        self.sums = state.pop("sha256")
        self.inputs = changed_values(state).map(as_json) | changed_bytes(as_json(state))
        recipe = Recipe.load("run/recipe.toml")
        self.trainer = build(recipe, load_points("faces", 16), torch.device("cpu"))
        self.before = load_file("run/checkpoints/000020/model.safetensors")

    def meet(self, content: bytes) -> None:
        with contextlib.suppress(Exception):  # what is not a JSON object stays as it is
            content = _sealed(json.loads(content) | {"sha256": self.sums}).encode()
        self.file.write_bytes(content)

        def restore_from(folder: Path) -> None:
            try:
                restore(self.trainer, *load_checkpoint(folder))
            except ValueError as error:
                raise Damaged(f"{folder} is damaged ({error})", "use another checkpoint") from error

        newest, _ = newest_whole(Path("run"), restore_from)
        assert newest is not None
        if newest.name == "000020":  # what was restored is what that checkpoint holds
            assert all(torch.equal(self.trainer.ema.state_dict()[key], value) for key, value in self.before.items())
        next(iter(self.trainer.loop()), None)


class Answers:
    """Answers of a web server, when a data set is fetched."""

    name = "HTTP answers"

    def __init__(self, folder: Path) -> None:
        self.inputs = answers()
        self.answer = b""
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        time.sleep = lambda seconds: None  # what fetches tries again at once
        os.environ["IMLETRITON_DATASETS_URL"] = f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self.server.accept()
                with connection:
                    connection.settimeout(5)
                    received = b""
                    while b"\r\n\r\n" not in received:
                        received += connection.recv(4096) or b"\r\n\r\n"
                    connection.sendall(self.answer)

    def meet(self, content: bytes) -> None:
        self.answer = content
        shutil.rmtree("datasets", ignore_errors=True)
        fetching.download_size(fetching.find("dog"))
        try:
            folder = fetching.get("dog")
        except InputError:
            assert not Path("datasets/AnimalFace-dog").exists()
        else:
            assert [*folder.iterdir()]


KINDS: list[Callable[[Path], Any]] = [Recipes, Configs, Tensors, States, Answers]


# -- batches ----------------------------------------------------------------------------------------------------------


def meet_all(kind: Callable[[Path], Any], base: Path, count: int, number: int) -> int:
    """Make and meet `count` inputs of a kind, in this process: batch `number`. The exit code is 0 where all is well."""
    subject = kind(base)
    done = Path("../count").resolve()

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=INPUT_SECONDS * 1000, phases=[Phase.generate], print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(subject.inputs)
    def meet(content: bytes) -> None:
        meet.count += 1  # type: ignore[attr-defined]
        Path("../input").write_bytes(content)
        try:
            subject.meet(content)
        except (InputError, Fault) as error:
            told = str(error)
            assert re.fullmatch(r".{10,}[.?]", told), f"no sentence: {told}"

    meet.count = 0  # type: ignore[attr-defined]
    try:
        meet()
    finally:
        done.write_text(str(meet.count))  # type: ignore[attr-defined]
    return 0


def case(base: Path, kind: Callable[[Path], Any], count: int, number: int) -> tuple[int, list[str]]:
    """Meet a batch of inputs in a process of its own; how many there were, and what is wrong."""
    place = base / f".fuzz-{kind.__name__}-{number}"
    (place / "here").mkdir(parents=True)
    try:
        ended = forked(lambda: meet_all(kind, base, count, number), place / "here", seconds=BATCH_SECONDS)
        met = int((place / "count").read_text()) if (place / "count").exists() else 0
        problems = []
        if ended.code:
            content = (place / "input").read_bytes() if (place / "input").exists() else b""
            tail = "\n".join(f"    {line[:400]}" for line in ended.output.splitlines()[-25:])
            problems.append(f"ended with {ended.code} at the input {content[:2000]!r}:\n{tail}")
        return met, problems
    finally:
        shutil.rmtree(place)


def batches(count: int) -> Iterator[tuple[Callable[[Path], Any], int, int]]:
    """Batches with `count` inputs together, of all kinds alike: kind, inputs, number."""
    for kind in KINDS:
        left = -(-count // len(KINDS))
        for number, start in enumerate(range(0, left, BATCH)):
            yield kind, min(BATCH, left - start), number
