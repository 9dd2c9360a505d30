"""The page of `imletriton export --web` in a browser."""

import contextlib
import functools
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import chromium
from PIL import Image

from imletriton.generator import Generator, latent_codes
from imletriton.share.export import onnxruntime_web
from imletriton.share.export.files import export_web

pytestmark = pytest.mark.browser
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
def page(checkpoint: Path, stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_web(checkpoint, tmp_path_factory.mktemp("page"), stand_in).path


class Browser:
    """Chromium at a page."""

    def __init__(self) -> None:
        self.driver = chromium()
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


def test_the_page_counts_and_draws_latent_codes_as_gen_does(page: Path) -> None:
    with looking_at(page) as browser:
        for seed, k, dim in ((0, 0, 1024), (2**32 - 1, 63, 3), (5, 6400, 64)):
            code = browser("return [...latentCode(...arguments)]", seed, k, dim)
            assert np.array(code, np.float32).tolist() == latent_codes(k, k + 1, dim, seed=seed)[0].tolist()


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
