"""What several tests share: a recipe so small that a whole run takes a second, a run of it, and a source of pictures.

PyTorch is loaded where it is used: the process that hands the tests to others does not need it.
"""

import contextlib
import functools
import gc
import io
import os
import re
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imletriton.recipe import Recipe
    from imletriton.runs.run import Run

TINY = """
name = "tiny"
[data]
source = "faces"
resolution = 16
[generator]
latent_dim = 8
mapping_layers = 1
width = 8
blocks = "4x1,8m4,16m8"
[distance]
kind = "pixels"
projection_dim = 64
[selection]
pool = "2n"
refresh = 4
[train]
iterations = 60
batch_size = 32
ema = 0.9
[log]
every = 10
samples_every = 30
checkpoint_every = 10
"""


def pytest_collectstart() -> None:
    prepare()


@functools.cache
def prepare() -> None:
    """Prepare the process, before the first file of tests is loaded."""
    gc.disable()  # loading makes millions of objects that stay
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than free cores wait for each other, busily
    import torch
    from hypothesis import HealthCheck, settings

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is loaded: its kernels then run on CPU tensors
    busy = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # no promise holds on idle machines only
    settings.register_profile("few", max_examples=10, derandomize=True, **busy)
    settings.register_profile("all", max_examples=100, **busy)
    settings.load_profile("all" if os.environ.get("IMLETRITON_TESTS") == "all" else "few")


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # what is loaded need not be looked through in each collection
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    """Let Triton's interpreter prepare its language once, not at every call of a device function: half of its time."""
    import torch

    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not hasattr(interpreter, "_patch_lang") or torch.cuda.is_available():  # a private name
        return
    patch_language, patched = interpreter._patch_lang, set[tuple[bool, bool]]()

    class Kept:
        def restore(self) -> None:
            pass

    def patch_once(function: Callable[..., object]) -> Kept:
        modules = {id(value) for value in function.__globals__.values()}
        seen = id(interpreter.tl) in modules, id(interpreter.tl.core) in modules
        if seen not in patched:
            patched.add(seen)
            patch_language(function)
        return Kept()

    interpreter._patch_lang = patch_once


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; its exit code."""
    from imletriton.cli import main

    monkeypatch.setattr(sys, "argv", ["imletriton", *arguments])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> "Recipe":
    from imletriton.recipe import Recipe

    return Recipe.load(recipe_file)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run with checkpoints at steps 10 and 20, only to be read: `own_run` is a copy."""
    from imletriton.commands.fit import fit
    from imletriton.recipe import Recipe

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY)
    return fit(Recipe.load(folder / "tiny.toml", {"train.iterations": 20}), folder / "tiny-001", device="cpu")


@pytest.fixture
def own_run(trained_run: "Run", tmp_path: Path) -> "Run":
    """A copy of `trained_run` to be used and changed."""
    from imletriton.runs.run import Run

    shutil.copytree(trained_run.path, tmp_path / "runs/tiny-001")
    return Run(tmp_path / "runs/tiny-001")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install(name, code, **entries) lays out a package of one module as an installer would, for the test's duration.

    Each entry is a group's last part and its entry points, such as mappings={"theirs": "their_package:Theirs"}.
    """
    modules = []

    def install_package(name: str, code: str, **entries: dict[str, str]) -> None:
        modules.append(name.replace("-", "_"))
        (tmp_path / f"{modules[-1]}.py").write_text(code)
        info = tmp_path / f"{modules[-1]}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 0.1\n")
        lines = [
            [f"[imletriton.{group}]", *(f"{k} = {v}" for k, v in points.items())] for group, points in entries.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(line for group in lines for line in group))
        monkeypatch.syspath_prepend(tmp_path)

    yield install_package
    for module in modules:
        sys.modules.pop(module, None)
    forget_foreign_classes()


def forget_foreign_classes() -> None:
    """Forget the strategies, mappings and decoders that tests have defined."""
    from imletriton.recipe import CHOICES

    for registry in CHOICES:
        for name in registry.classes.keys() - registry.built_in.keys():
            del registry.classes[name]


def picture(seed: int = 0, side: int = 8) -> bytes:
    """Noise as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


DOGS = zipped({f"AnimalFace-dog/{k}.png": picture(k, side=128) for k in range(3)})


class Source:
    """A web server on this machine: its files, whether it sends parts of them, and when it breaks off or stalls."""

    def __init__(self) -> None:
        self.files = {"AnimalFace-dog.zip": DOGS}
        self.ranges = True
        self.breaks_off: list[int] = []  # after so many bytes, once each
        self.stalls_at: int | None = None  # after so many bytes, until it may go on
        self.go_on = threading.Event()
        self.tells_size = True
        self.asked: list[str] = []  # the ranges asked for, in order

    def answer_head(self, handler: BaseHTTPRequestHandler) -> None:
        content = self.files.get(handler.path.lstrip("/"))
        if content is None:
            handler.send_error(404)
            return
        handler.send_response(200)
        if not self.tells_size:  # but that of a page, which leads to the file
            handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.send_header("Content-Length", str(len(content) if self.tells_size else 2000))
        handler.end_headers()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = self.files.get(handler.path.lstrip("/"))
        self.asked.append(handler.headers["Range"])
        if content is None:
            handler.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"])[1]) if self.ranges else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if self.ranges else 200)
        if self.ranges:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        stop = start + self.breaks_off.pop(0) if self.breaks_off else len(content)
        if self.stalls_at is not None:
            handler.wfile.write(content[start : self.stalls_at])
            start = self.stalls_at
            self.go_on.wait(60)
        handler.wfile.write(content[start:stop])
        handler.close_connection = True


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    served = Source()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):  # whoever asked has gone
                served.answer(self)

        def do_HEAD(self) -> None:
            served.answer_head(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("IMLETRITON_DATASETS_URL", f"http://127.0.0.1:{server.server_port}")
        yield served
        served.go_on.set()
        server.shutdown()
