import contextlib
import copy
import functools
import hashlib
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import run_cli
from PIL import Image

from imletriton.errors import InputError
from imletriton.generator import Generator, latent_codes
from imletriton.runs.opening import open_source
from imletriton.share.export import files as export
from imletriton.share.export import onnxruntime_web
from imletriton.share.export.files import export_web

SIDE, DIM = 16, 8
# Stands for onnxruntime-web: a sample's red is its second latent code times truncation, green and blue are its first.
STAND_IN = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
export const InferenceSession = { create: async (model) => ({ run: async ({ z, truncation }) => {
  const [batch, dim] = z.dims, pixels = 16 * 16, images = { data: new Uint8Array(batch * 3 * pixels) };
  const level = (number) => Math.max(0, Math.min(255, 128 + 40 * number * truncation.data[0]));
  for (let k = 0; k < batch; k++) {
    images.data.fill(level(z.data[k * dim]), 3 * pixels * k, 3 * pixels * (k + 1));
    images.data.fill(level(z.data[k * dim + 1]), 3 * pixels * k, 3 * pixels * k + pixels);
  }
  return { images };
} }) };
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with random weights, named like a run's checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "tiny <1>" / "checkpoints" / "004000"
    torch.manual_seed(0)
    Generator(DIM, mapping_layers=1, width=8, blocks="4x1,8m4,16m8").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    (folder / "dist").mkdir()
    (folder / "dist" / onnxruntime_web.MODULE).write_text(STAND_IN)
    (folder / "dist" / onnxruntime_web.WASM).write_bytes(b"\0asm")
    return folder


@pytest.fixture(scope="module")
def _once(checkpoint: Path) -> Iterator[None]:
    """The generator is converted once only, which takes seconds."""
    made = export._converted(open_source(checkpoint), lambda name, done, total: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_converted", lambda opened, progress: (copy.deepcopy(made[0]), *made[1:]))
        yield


@pytest.fixture(scope="module")
def page(checkpoint: Path, stand_in: Path, _once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_web(checkpoint, tmp_path_factory.mktemp("page"), stand_in).path


def test_a_page_names_its_model_and_loads_nothing_from_elsewhere(page: Path) -> None:
    html = (page / "index.html").read_text()
    for words in ("<h1>tiny &lt;1&gt;</h1>", "16 x 16 pixels", "trained for 4,000 steps"):
        assert words in html
    texts = [file.read_text() for file in page.iterdir() if file.suffix in (".html", ".js", ".css")]
    assert set(re.findall(r"https?://[^\s\"`]+", " ".join(texts))) == {"http://localhost:8000"}
    assert sorted(str(file.relative_to(page)) for file in page.rglob("*") if file.is_file()) == [
        "icon.svg",
        "index.html",
        "latents.js",
        "model.onnx",
        f"onnxruntime/{onnxruntime_web.WASM}",
        f"onnxruntime/{onnxruntime_web.MODULE}",
        "page.css",
        "page.js",
        "worker.js",
    ]
    inputs = onnxruntime.InferenceSession(page / "model.onnx", providers=["CPUExecutionProvider"]).get_inputs()
    assert {value.name for value in inputs} == {"z", "truncation"}  # onnxruntime-web takes none that may be left out


@pytest.mark.usefixtures("_once")
def test_a_page_replaces_an_earlier_one_and_nothing_else(checkpoint: Path, stand_in: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    for _ in range(2):
        (folder / "model.onnx").unlink(missing_ok=True)
        assert (export_web(checkpoint, folder, stand_in).path / "model.onnx").is_file()
        (folder / ".nojekyll").touch()
    (folder / "index.html").unlink()  # as where an export was killed
    export_web(checkpoint, folder, stand_in)
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"page holds other files, such as notes.txt: choose an empty or new folder"):
        export_web(checkpoint, folder, stand_in)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my site")
    with pytest.raises(InputError, match=r"site holds other files, such as index\.html"):
        export_web(checkpoint, tmp_path / "site", stand_in)
    with pytest.raises(InputError, match="is a file: name a folder"):
        export_web(checkpoint, tmp_path / "site" / "index.html", stand_in)
    assert (tmp_path / "site" / "index.html").read_text() == "my site"


@pytest.mark.usefixtures("_once")
def test_the_command_line_says_what_it_wrote_and_what_it_checked(
    checkpoint: Path,
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(monkeypatch, "export", str(checkpoint)) == 2
    assert "export needs --onnx FILE, --web DIR, or both." in capsys.readouterr().err
    arguments = ["export", str(checkpoint), "--web", str(tmp_path / "my page"), "--onnxruntime", str(stand_in)]
    assert run_cli(monkeypatch, *arguments, "--onnx", str(tmp_path / "m.onnx")) == 0
    said = capsys.readouterr()
    assert "exports tiny <1>, step 4000" in said.err
    assert said.out.count("Checked: 12 samples by onnxruntime and by PyTorch differ ") == 2
    assert f"python -m http.server --directory '{tmp_path / 'my page'}'" in said.out
    assert run_cli(monkeypatch, *arguments[:-1], str(tmp_path)) == 2
    assert "with --onnxruntime DIR" in capsys.readouterr().err


# -- onnxruntime-web --------------------------------------------------------------------------------------------------


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of npm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def program(text: str) -> None:
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)

    return program


def test_npm_fetches_onnxruntime_web_once(
    npm: Callable[[str], None], stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as package:
        package.add(stand_in, "package")
    npm(f"/bin/cp {tmp_path}/package.tgz .")
    with pytest.raises(InputError, match=r"is not the onnxruntime-web@.* that is known here"):
        onnxruntime_web.runtime_files()
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (stand_in / "dist").iterdir()}
    monkeypatch.setattr(onnxruntime_web, "SHA256", files)
    fetched = onnxruntime_web.runtime_files()
    assert fetched[onnxruntime_web.MODULE].decode() == STAND_IN
    npm("exit 1")
    assert onnxruntime_web.runtime_files() == fetched
    next((tmp_path / "cache").rglob("*.wasm")).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"npm could not fetch .* \(exit code 1\)"):
        onnxruntime_web.runtime_files()


def test_where_npm_cannot_fetch_it_another_way_is_told(npm: Callable[[str], None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"npm, which fetches it, is not installed: .* with `onnxruntime=DIR`"):
        onnxruntime_web.runtime_files()
    npm("echo 'npm error code ENETWORK' >&2; exit 1")
    with pytest.raises(
        InputError, match=r"npm could not fetch onnxruntime-web@\S+ \(ENETWORK\): try again with a network, or unpack"
    ):
        onnxruntime_web.runtime_files()
    npm("echo damaged > p.tgz")
    with pytest.raises(InputError, match=r"is damaged \(.*\): try again"):
        onnxruntime_web.runtime_files()
    with pytest.raises(InputError, match=r"ort.wasm.*mjs cannot be read \(No such file or directory\): name the"):
        onnxruntime_web.runtime_files(tmp_path)


# -- in a browser -----------------------------------------------------------------------------------------------------


class Browser:
    """Chromium, driven by Selenium."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
        if program is None or driver is None:
            pytest.skip("no Chromium, or no chromedriver, here")
        options = webdriver.ChromeOptions()
        options.binary_location = program
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(60)

    def __call__(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str, k: int = 0) -> None:
        self.driver.find_elements("css selector", selector)[k].click()

    def wait_for(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        end = time.monotonic() + 60
        while not self(f"return {condition}"):
            assert time.monotonic() < end, (condition, self("return get('words').textContent"))
            time.sleep(0.05)

    def tiles(self) -> np.ndarray:
        """The pictures of the grid once they are drawn, int [n, 3, H, W]."""
        self.wait_for("tiles.every((tile) => !tile.stale) && !asked.length")
        read = "[...t.canvas.getContext('2d').getImageData(0, 0, resolution, resolution).data]"
        pixels = np.array(self(f"return tiles.map((t) => {read})")).reshape(-1, SIDE, SIDE, 4)
        assert (pixels[..., 3] == 255).all()
        return pixels[..., :3].transpose(0, 3, 1, 2)


@contextlib.contextmanager
def looking_at(folder: Path, address: str = "") -> Iterator[Browser]:
    """Chromium at a folder that this machine serves, with a policy that allows nothing from elsewhere."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("Content-Security-Policy", "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'")
            super().end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    browser = Browser()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            browser.driver.get(f"http://127.0.0.1:{server.server_port}/{address}")
            yield browser
        finally:
            browser.driver.quit()
            server.shutdown()


DRAWN = "document.querySelectorAll('.drawn').length === 24"


def assert_samples(browser: Browser, seed: int, variety: float = 1) -> None:
    """Check that the grid shows samples 0 to 23 of a seed, as the stand-in for onnxruntime-web draws them."""
    codes = latent_codes(0, 24, DIM, seed=seed)[:, [1, 0, 0], None, None].numpy()
    expected = np.clip(128 + 40 * variety * codes, 0, 255)
    assert np.abs(browser.tiles() - expected).max() <= 1


@pytest.mark.browser
def test_samples_are_chosen_by_button_slider_seed_and_address(page: Path) -> None:
    with looking_at(page, "#seed=7&variety=0.5") as browser:
        browser.wait_for(DRAWN)
        assert browser("return get('status').hidden")
        assert_samples(browser, 7, 0.5)
        slide = "get('variety').value = arguments[0]; get('variety').dispatchEvent(new Event('input'))"
        browser(slide, 1.5)
        assert_samples(browser, 7, 1.5)
        assert browser("return location.hash + ' ' + get('variety-shown').textContent") == "#seed=7&variety=1.5 1.50"
        browser(slide, 1)
        browser.click("#new")
        seed = browser("return shown.seed")
        assert browser("return [location.hash, get('seed').value]") == [f"#seed={seed}&variety=1", str(seed)]
        assert_samples(browser, seed)
        browser.driver.back()
        browser.wait_for("shown.seed === 7")
        assert_samples(browser, 7)
        field = browser.driver.find_element("id", "seed")
        for text, expected in (("123456", 123456), ("-3", 123456), ("4294967296", 123456), ("4294967295", 2**32 - 1)):
            field.clear()
            field.send_keys(f"{text}\n")
            assert_samples(browser, expected)
        assert browser("return location.hash") == "#seed=4294967295&variety=1"
        assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.browser
def test_a_sample_is_enlarged_and_saved(page: Path, tmp_path: Path) -> None:
    with looking_at(page, "#seed=7") as browser:
        browser.wait_for(DRAWN)
        browser.click("#grid button", 4)
        assert browser("return get('caption').textContent") == "Sample 4 of seed 7"
        browser.click("#next")
        assert browser("return get('caption').textContent") == "Sample 5 of seed 7"
        large = browser("return [...get('canvas').getContext('2d').getImageData(3, 3, 1, 1).data]")
        assert large[:3] == browser.tiles()[5, :, 3, 3].tolist()
        behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
        browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        browser.click("#save")
        file, end = tmp_path / "tiny-1-sample-5-of-seed-7.png", time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < end, [*tmp_path.iterdir()]
            time.sleep(0.05)
        with Image.open(file) as saved:
            assert (np.asarray(saved.convert("RGB")).transpose(2, 0, 1) == browser.tiles()[5]).all()
        browser.click("#close")
        assert not browser("return get('large').open")


@pytest.mark.browser
def test_an_animation_leads_from_sample_to_sample_on_a_sphere(page: Path) -> None:
    with looking_at(page, "#seed=7") as browser:
        browser.wait_for(DRAWN)
        browser.click("#animate")
        browser.wait_for("shown.position > 1.2")
        browser.click("#grid button", 2)
        browser.wait_for("get('caption').textContent.startsWith('Between samples ')")
        browser.click("#close")
        browser.click("#animate")
        assert browser("return get('animate').textContent") == "Animate"
        still = browser.tiles()
        position = browser("return shown.position")
        assert (still == browser.tiles()).all()
        row = int(position)
        a, b = latent_codes(0, 24 * (row + 2), DIM, seed=7)[[24 * row, 24 * row + 24]].double().numpy()
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        way = position - row
        expected = (np.sin((1 - way) * angle) * a + np.sin(way * angle) * b) / np.sin(angle)
        assert np.allclose(browser("return [...codeOf(tiles[0])]"), expected, atol=1e-5)
        browser("shown.position = arguments[0]; redraw()", position + 1)
        assert not (still == browser.tiles()).all()


@pytest.mark.browser
def test_the_page_fits_a_phone(page: Path) -> None:
    with looking_at(page) as browser:
        phone = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        browser.wait_for(DRAWN)
        assert browser("return document.documentElement.scrollWidth") <= 360
        browser.click("#grid button", 1)
        box = browser("return get('large').getBoundingClientRect().toJSON()")
        assert box["left"] >= 0
        assert box["right"] <= 360
        assert box["bottom"] <= 640


@pytest.mark.browser
def test_the_page_says_in_words_why_it_cannot_draw(page: Path, tmp_path: Path) -> None:
    def said(browser: Browser) -> str:
        browser.wait_for("get('words').classList.contains('wrong')")
        assert browser("return get('new').disabled")
        return str(browser("return get('words').textContent"))

    with looking_at(page) as browser:
        lack = {"source": "delete globalThis.WebAssembly"}
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", lack)
        browser.driver.refresh()
        assert "This browser has no WebAssembly" in said(browser)
        browser.driver.get((page / "index.html").as_uri())
        assert "run `python -m http.server` in this folder" in said(browser)
    lacking = shutil.copytree(page, tmp_path / "lacking")
    (lacking / "model.onnx").unlink()
    with looking_at(lacking) as browser:
        assert re.search(r"run here: model.onnx\?\w+ could not be loaded: the server says 404\.$", said(browser))
        (lacking / "onnxruntime" / onnxruntime_web.MODULE).unlink()
        browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        browser.driver.refresh()
        assert "a file of this page is missing, or this browser is too old" in said(browser)


@pytest.mark.browser
def test_the_page_counts_and_draws_latent_codes_as_gen_does(page: Path) -> None:
    with looking_at(page) as browser:
        for seed, k, dim in ((0, 0, 1024), (2**32 - 1, 63, 3), (5, 6400, 64)):
            code = browser("return [...latentCode(...arguments)]", seed, k, dim)
            assert np.array(code, np.float32).tolist() == latent_codes(k, k + 1, dim, seed=seed)[0].tolist()


@pytest.mark.browser
@pytest.mark.usefixtures("_once")
def test_a_browser_draws_what_pytorch_draws(checkpoint: Path, tmp_path: Path) -> None:
    """With the real onnxruntime-web."""
    if onnxruntime_web.cached() is None:
        pytest.skip("onnxruntime-web is not in the cache: `imletriton export --web DIR` fetches it")
    model = Generator.from_pretrained(checkpoint)
    with looking_at(export_web(checkpoint, tmp_path / "page").path, "#seed=5") as browser:
        browser.wait_for(DRAWN)
        assert np.abs(browser.tiles() - model.sample(24, seed=5).numpy()).max() <= 1
        z = latent_codes(0, 3, DIM, seed=9)
        answer = "const [z, done] = arguments; draw(Float32Array.from(z.flat())).then((bytes) => done([...bytes]))"
        drawn = np.array(browser.driver.execute_async_script(answer, z.tolist()))
        assert np.abs(drawn.reshape(3, 3, SIDE, SIDE) - model.sample(3, seed=9).numpy()).max() <= 1
