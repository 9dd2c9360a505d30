"""The page of `imletriton explore` as others see it: over HTTP, and in a browser that uses every control."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
from chromium import chromium
from conftest import picture, run_cli
from PIL import Image

from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.runs.run import Run
from imletriton.share.explore import explore
from imletriton.share.origin import read_origin
from imletriton.share.space import write_space

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # about pandas


@pytest.fixture(scope="module")
def run(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that the page may write favourites into."""
    return Run(shutil.copytree(trained_run.path, tmp_path_factory.mktemp("page") / "tiny-001"))


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    """The address of a page that a thread of this process serves, as PyTorch and Gradio take seconds to load."""
    from imletriton.share.explore import server

    started, addresses, place = list[Any](), Queue[str](), run.path.parent / "temporary"

    class Kept(server.Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "Server", Kept)
        patch.setattr(tempfile, "tempdir", str(place))
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):  # which are put back afterwards
            patch.setenv(name, "")
        settings = {"port": 0, "device": "cpu", "ready": addresses.put}
        thread = threading.Thread(target=explore, args=[run], kwargs=settings)
        thread.start()
        yield addresses.get(timeout=100)
        started[0].should_exit = True
        thread.join(30)
        assert not list(place.iterdir())


@contextlib.contextmanager
def serving(*command: str, folder: Path, **environment: str) -> Iterator[str]:
    """Let another process serve a page, and end it by Ctrl-C, after which nothing of it may be left."""
    (folder / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"} | environment,
    )
    assert process.stdout
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "http://" in line:
                break
        assert lines and "http://" in lines[-1], "".join(lines)
        yield next(word for word in lines[-1].split() if word.startswith("http://"))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[0]
        assert process.returncode == 0, told
        assert "Traceback" not in told
        assert not list((folder / "tmp").glob("imletriton*"))
    finally:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_ends_the_page_and_leaves_nothing(run: Run) -> None:
    command = ["-m", "imletriton", "explore", run.path.name, "--port", "0", "--device", "cpu"]
    with serving(*command, folder=run.path.parent) as address:
        assert "tiny-001: explore" in httpx.get(address).text


def event(address: str, number: int, data: list[Any]) -> httpx.Response:
    body = {"data": data, "fn_index": number, "session_hash": "me"}
    return httpx.post(f"{address}/gradio_api/queue/join", json=body)


def test_a_page_comes_from_this_machine_alone_and_is_told_to_stay_there(address: str) -> None:
    page = httpx.get(address)
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "tiny-001: explore" in page.text
    settings = httpx.get(f"{address}/config").json()
    assert settings["analytics_enabled"] is False
    assert "http" not in json.dumps(settings["stylesheets"])
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=/proc/self/environ",
        "/gradio_api/file={run}/recipe.toml",
        "/gradio_api/file=tiny-001/recipe.toml",
        "/gradio_api/file=..%2f..%2fetc/passwd",
        "/gradio_api/file=http://127.0.0.1:{port}/config",
        "/gradio_api/file=%68ttp://127.0.0.1:{port}/config",
        "/gradio_api/proxy=http://127.0.0.1:{port}/config",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/monitoring",
    ],
)
def test_no_file_or_address_that_a_client_names_is_read(address: str, run: Run, path: str) -> None:
    answer = httpx.get(address + path.format(run=run.path.resolve(), port=address.rpartition(":")[2]))
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text
    assert "tiny" not in answer.text.replace(str(run.path), "").replace("tiny-001/recipe.toml", "")


def test_no_event_may_name_a_file_or_an_address(address: str, run: Run, tmp_path: Path) -> None:
    """Gradio itself would read any file for a page that is mounted in another application."""
    dependencies = httpx.get(f"{address}/config").json()["dependencies"]
    (upload,) = (d["id"] for d in dependencies if any(name == "upload" for _, name in d["targets"]))
    (tmp_path / "photo.png").write_bytes(picture())
    kind = {"_type": "gradio.FileData"}
    for path in ("/etc/passwd", str(tmp_path / "photo.png"), "tiny-001/recipe.toml", "https://127.0.0.1/x.png"):
        assert event(address, upload, [{"path": path, "meta": kind}]).status_code == 403
    for body in (b"{", b"[" * 2**19, b"[" * 2**21):
        assert httpx.post(f"{address}/gradio_api/queue/join", content=body).status_code == 403
    uploads = f"{address}/gradio_api/upload"
    assert httpx.post(uploads, files={"files": ("a.png", b"x" * (21 << 20))}).status_code == 413
    (kept,) = httpx.post(uploads, files={"files": ("../../a.png", picture())}).json()
    assert Path(kept).is_relative_to(run.path.parent / "temporary")
    assert event(address, upload, [{"path": kept, "meta": kind}]).status_code == 200


def test_a_port_in_use_and_wrong_addresses_are_told(
    address: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = address.rpartition(":")[2]
    for arguments, words in (
        (["--port", port], f"Port {port} of 127.0.0.1 cannot be listened on (Address already in use): choose another"),
        (["--port", "65536"], "--port must be from 0 to 65535, not 65536"),
        (["--host", "192.0.2.1"], "--host '192.0.2.1' is not an address of this machine"),
        (["--device", "mps"], "use cuda or cpu"),
    ):
        assert run_cli(monkeypatch, "explore", str(run.path), *arguments) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_cli(monkeypatch, "explore", str(run.path)) == 2
    assert 'pip install "imletriton[explore]"' in capsys.readouterr().err


class Browser:
    """Headless Chromium at a page."""

    def __init__(self, address: str, width: int, height: int, folder: Path) -> None:
        self.driver = chromium()
        behaviour = {"behavior": "allow", "downloadPath": str(folder)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(address)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def shown(self, selector: str) -> list[str]:
        """The addresses of the pictures that are drawn."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(i => i.complete && i.naturalWidth ? i.src : '')"
        )
        return self.driver.execute_script(script, f"{selector} img")

    def text(self, selector: str) -> str:
        return self.all(selector)[0].text

    def click(self, selector: str, number: int = 0) -> None:
        self.driver.execute_script("arguments[0].click()", self.all(selector)[number])

    def put(self, selector: str, value: float, *events: str) -> None:
        script = "arguments[0].value = arguments[1]; for (const e of arguments[2]) "
        script += "arguments[0].dispatchEvent(new Event(e, {bubbles: true}))"
        self.driver.execute_script(script, self.all(selector)[0], value, list(events))

    def open_tab(self, name: str) -> None:
        (tab,) = (tab for tab in self.all("button[role=tab]") if tab.text.strip() == name and tab.is_displayed())
        self.driver.execute_script("arguments[0].click()", tab)

    def until(self, holds: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(Exception):  # what is looked at may be drawn anew meanwhile
                if value := holds():
                    return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}")

    def until_changed(self, selector: str, before: list[str], count: int | None = None) -> list[str]:
        """Wait until all pictures are drawn and some are others than before."""

        def changed() -> list[str]:
            now = self.shown(selector)
            return now if all(now) and now != before and (count is None or len(now) == count) else []

        return self.until(changed, f"{selector} changes")

    def addresses(self) -> set[str]:
        """What the browser has asked for."""
        messages = [json.loads(entry["message"])["message"]["params"] for entry in self.driver.get_log("performance")]
        return {message["request"]["url"] for message in messages if "request" in message}


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[str, int, int], Browser]]:
    opened = []

    def open_browser(address: str, width: int = 1280, height: int = 900) -> Browser:
        opened.append(Browser(address, width, height, tmp_path))
        return opened[-1]

    yield open_browser
    for browser in opened:
        browser.driver.quit()


@pytest.mark.browser
def test_every_control_of_the_page_does_what_it_says(
    address: str, run: Run, browse: Callable[..., Browser], tmp_path: Path
) -> None:
    page = browse(address)
    grid = page.until_changed("#samples", [], 36)
    near = page.until_changed("#neighbours", [], 12)
    page.until_changed("#nearest", [], 1)
    assert "Sample 0 of seed 0" in page.text("#about")
    assert "that training picture" in page.text("#about")

    # another seed, by its number and by the button
    page.put("#seed input", 7, "input", "change")
    of_seven = page.until_changed("#samples", grid, 36)
    page.click("#next-seed")
    page.until(lambda: page.all("#seed input")[0].get_attribute("value") == "8", "seed 8")
    page.until_changed("#samples", of_seven, 36)

    # a click chooses a sample, and its neighbours and its nearest training picture follow
    chosen = page.shown("#chosen")
    page.click("#samples .thumbnail-item", 3)
    page.until(lambda: "Sample 3 of seed 8" in page.text("#about"), "sample 3 is chosen")
    chosen = page.until_changed("#chosen", chosen)
    near = page.until_changed("#neighbours", near)
    page.until(lambda: "that training picture" in page.text("#about"), "its nearest training picture")

    # neighbours: their distance, others, and a click
    page.put("#distance input[type=range]", 0.9, "input", "pointerup", "change")
    near = page.until_changed("#neighbours", near)
    page.click("#others")
    near = page.until_changed("#neighbours", near)
    page.click("#neighbours .thumbnail-item", 5)
    page.until(lambda: "Near sample 3 of seed 8" in page.text("#about"), "a neighbour is chosen")
    assert page.until_changed("#chosen", chosen)

    # mixes of the chosen and the second picture
    page.click("#samples .thumbnail-item", 1)
    page.until(lambda: "Sample 1 of seed 8" in page.text("#about"), "sample 1 is chosen")
    page.click("#set-second")
    page.click("#samples .thumbnail-item", 2)
    page.until(lambda: "Sample 2 of seed 8" in page.text("#about"), "sample 2 is chosen")
    page.open_tab("Mix")
    mixes = page.until_changed("#mixes", [], 8)
    assert len(set(mixes)) == 8
    names = [caption.text for caption in page.all("#mixes .caption-label")]
    assert names[:4] == ["the chosen one", "coarse", "middle", "fine"]
    page.click("#mixes .thumbnail-item", 3)
    page.until(lambda: "with fine of sample 1 of seed 8" in page.text("#about"), "a mix is chosen")
    page.until_changed("#mixes", mixes, 8)

    # from one to the other
    page.open_tab("Interpolate")
    between = page.until_changed("#between", [], 1)
    page.put("#scrubber input[type=range]", 0.25, "input")
    page.until_changed("#between", between, 1)
    page.click("#take")
    page.until(lambda: "25% of the way" in page.text("#about"), "the one between is chosen")

    # favourites: in the run's folder, and by download
    page.open_tab("Favourites")
    page.click("#keep")
    kept = page.until(lambda: list(run.favourites.glob("*.png")), "a favourite is kept")
    page.until_changed("#favourites", [], 1)
    assert "25% of the way" in read_origin(kept[0]).made
    page.click("#samples .thumbnail-item", 0)
    page.until(lambda: "Sample 0 of seed 8" in page.text("#about"), "sample 0 is chosen")
    page.click("#favourites .thumbnail-item")
    page.until(lambda: "25% of the way" in page.text("#about"), "the favourite is chosen")
    time.sleep(0.5)  # until the button has the new file
    page.click("#download")
    loaded = page.until(lambda: list(tmp_path.glob("25-of-the-way*.png")), "a download")
    assert read_origin(loaded[0]) == read_origin(kept[0])

    # a photo
    page.open_tab("Project")
    with Image.open(kept[0]) as image:
        image.convert("RGB").resize((50, 40)).save(photo := tmp_path / "photo.jpg")
    page.all("#photo input[type=file]")[0].send_keys(str(photo))
    page.until_changed("#projected", [], 1)
    page.until(lambda: "A projected photo" in page.text("#about"), "a photo is projected")

    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    strangers = {a for a in page.addresses() if not a.startswith((address, "data:", "blob:", "chrome"))}
    assert not strangers


@pytest.mark.browser
def test_what_is_no_photo_is_told_on_the_page(address: str, browse: Callable[..., Browser], tmp_path: Path) -> None:
    page = browse(address)
    page.until_changed("#nearest", [], 1)
    page.open_tab("Project")
    (tmp_path / "broken.png").write_bytes(picture()[:60])
    page.all("#photo input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
    page.until(lambda: "This photo cannot be read" in page.text("body"), "an error")


@pytest.mark.browser
def test_nothing_is_wider_than_a_phone(address: str, browse: Callable[..., Browser]) -> None:
    page = browse(address, 390, 844)
    page.until_changed("#nearest", [], 1)
    for name in ("Neighbours", "Mix", "Interpolate", "Project", "Favourites"):
        page.open_tab(name)
        time.sleep(0.3)
        wide, window = page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window == 390
    (large,) = page.all("#chosen img")
    assert large.size["width"] > 120
    assert large.value_of_css_property("image-rendering") == "pixelated"
    assert large.location["y"] < page.all("#samples")[0].location["y"]


@pytest.mark.browser
def test_a_space_runs_from_its_folder(run: Run, tmp_path: Path, browse: Callable[..., Browser]) -> None:
    space = write_space(run, tmp_path / "space")
    assert {p.name for p in space.iterdir()} == {"app.py", "requirements.txt", "README.md", "models", "imletriton"}
    assert {p.name for p in (space / "models" / "tiny-001").iterdir()} == {"config.json", "model.safetensors"}
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert f"gradio=={settings['sdk_version']}" in (space / "requirements.txt").read_text().splitlines()
    assert "tiny-001" in text
    assert str(run.path.parent) not in "".join(p.read_text() for p in space.glob("*.*"))
    with serving("app.py", folder=space, GRADIO_SERVER_PORT="0") as address:
        page = browse(address)
        page.until_changed("#neighbours", [], 12)
        page.until(
            lambda: "tiny-001 has no training pictures to compare with" in page.text("#about"), "why there is none"
        )
        assert not page.all("#keep")
        assert [tab.text for tab in page.all("button[role=tab]") if tab.is_displayed()][-1] == "Project"
    modules = subprocess.run(
        [sys.executable, "-c", "import imletriton; print(imletriton.__file__)"],
        cwd=space,
        capture_output=True,
        text=True,
        check=True,
    )
    assert modules.stdout.strip() == str(space / "imletriton" / "__init__.py")


def test_a_space_is_written_into_a_new_folder_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(InputError, match=r"mine is not an empty folder: choose a new or an empty one with `space=DIR`"):
        write_space(run, tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be written"):
        write_space(run, tmp_path / "mine" / "precious" / "below")
    generator = Generator.from_pretrained(run.path)
    generator.save_pretrained(tmp_path / "foreign")
    config = tmp_path / "foreign" / "config.json"
    config.write_text(config.read_text().replace('"vdvae"', '"theirs"'))
    with pytest.raises(InputError, match="decoder 'theirs' of another package"):
        write_space(tmp_path / "foreign", tmp_path / "space")
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "foreign"}
