import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from small_networks import SmallInception

from imletriton.commands import report as reporting
from imletriton.commands.eval import evaluate
from imletriton.commands.fit import fit
from imletriton.commands.report import CAPTIONS, report
from imletriton.commands.show import VIEWS
from imletriton.errors import InputError
from imletriton.plotting.grids import image_pairs
from imletriton.recipe import Recipe
from imletriton.runs.run import Run

EVALUATION = {
    "run": "tiny-001",
    "step": 20,
    "samples": "seed 0",
    "count": 50,
    "resolution": 16,
    "imletriton": "0.1.0",
    "written": "tiny-001/eval.json",
    "weights": "random",
    "metrics": {
        "fid": {"value": 31.4159, "samples": 50},
        "kid": {"value": 0.02, "deviation": 0.001, "samples": 50},
        "authenticity": {"value": 0.61, "samples": 1000, "reference": 0.48, "pictures": 100},
    },
    "published": {"RS-IMLE": {"fid": 23.1}},
    "data": "faces",
    "pictures": 100,
    "notes": ["FID of <few> pictures."],
}


@pytest.fixture
def run(own_run: Run) -> Run:
    own_run.evaluation_file.write_text(json.dumps(EVALUATION))
    return own_run


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.share.views.RECALLED", 32)


def test_a_report_holds_all_of_a_run_and_needs_nothing_else(run: Run) -> None:
    html = report(run.path, device="cpu").read_text()
    pictures = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    names = re.findall(r'alt="(\w+)"', html)
    assert names == ["samples", "nearest", "interpolate", "curves", "distances"]
    for embedded in pictures:
        with Image.open(io.BytesIO(base64.b64decode(embedded))) as opened:
            assert opened.width > 100
    assert not re.search(r'(src|href)="(?!data:)', html)
    for words in (
        "tiny-001",
        "31.42",
        "random weights",
        "0.02 ± 0.001",
        "RS-IMLE, published, not measured here",
        "100 pictures of <code>faces</code>",
        "61% of 1,000 samples are new pictures rather than copies",
        "48% do. So the samples are no closer to the training pictures than new pictures of their kind",
    ):
        assert words in html
    assert "FID of &lt;few&gt; pictures." in html
    assert "batch_size = 32" in html
    assert "torch" in html
    assert set(VIEWS) <= set(CAPTIONS)


def test_a_report_of_many_large_pictures_can_be_sent() -> None:
    many = torch.randint(0, 256, (389, 3, 8, 8), dtype=torch.uint8).repeat_interleave(32, 2).repeat_interleave(32, 3)
    sheet = image_pairs(many, many.flip(0))
    assert max(sheet.size) < 10_000
    assert len(reporting._embedded(sheet, True)) < 10e6


def test_a_report_of_a_run_that_was_not_judged_says_how_and_goes_where_it_may_be_written(
    own_run: Run, tmp_path: Path
) -> None:
    (own_run.path / "figures").write_text("in the folder's place")
    html = report(own_run, tmp_path / "out" / "r.html").read_text()
    assert "<code>imletriton eval</code>" in html
    assert 'alt="samples"' in html


def test_a_run_is_resumed_evaluated_and_reported_from_any_folder_and_reports_name_no_folders(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures and the run were named by relative paths."""
    home = tmp_path / "someone's home"
    (home / "my pictures").mkdir(parents=True)
    for k in range(4):
        (home / "my pictures" / f"{k}.png").write_bytes(picture(k))
    monkeypatch.chdir(home)
    changes = {"data.source": "my pictures", "train.iterations": 4, "log.checkpoint_every": 2}
    run = fit(Recipe.load(recipe_file, changes), "runs/mine-001", device="cpu")
    best = home / run.checkpoints[0]
    measured = EVALUATION | {"data": str(home / "my pictures"), "notes": [f"imletriton eval {best}"]}
    (run.path / "eval.json").write_text(json.dumps(measured))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in (home / run.path, Path("../someone's home") / run.path):
        html = report(source, Path("report.html")).read_text()
        assert str(tmp_path) not in html
        assert html.count("<code>my pictures</code>") == 2
        assert "source = &#34;my pictures&#34;" in html
        assert "<li>imletriton eval mine-001/checkpoints/000002</li>" in html
    monkeypatch.setattr("imletriton.metrics.networks.Inception", SmallInception)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert evaluate(source, metrics=["fid"], n=2).data == str(home / "my pictures")
    assert fit(source, resume=True).log()[-1].step == 4
    shutil.move(home / "my pictures", home / "moved")
    with pytest.raises(InputError, match=r"my pictures\" is not a folder"):
        fit(resume=True, run_dir=source)
    moved = Recipe.load(run_file := home / run.path / "recipe.toml", {"data.source": "../someone's home/moved"})
    fit(moved, source, resume=True)
    assert Recipe.load(run_file).data.source == str(Path.cwd() / "../someone's home/moved")


def test_what_cannot_be_reported_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        report(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder: name the HTML file"):
        report(run.path, tmp_path)
    with pytest.raises(InputError, match=r"r.html cannot be written .*choose another file with `out`"):
        report(run.path, tmp_path / "file" / "r.html")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_the_report_at_a_desk_and_on_a_phone(run: Run, tmp_path: Path, width: int, height: int) -> None:
    """No part of the page is wider than the window, and its pictures are drawn."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    html = report(run.path, tmp_path / "report.html")
    page = html.read_text().replace(
        "</html>",
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth, window: innerWidth,"
        "drawn: [...document.images].every(i => i.complete && i.naturalWidth > 100 && i.width <= innerWidth)})})"
        "</script></html>",
    )
    html.write_text(page)
    # Headless Chromium's windows have a least width, so the page is looked at in a frame of the device's.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="report.html" style="border:0;width:{width}px;height:{height}px"></iframe>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    dump = subprocess.run(
        [browser, *flags, "--dump-dom", str(html), f"--window-size={max(500, width)},{height}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(re.findall(r"<title>(\{.*?\})</title>", dump)[0].replace("&quot;", '"'))
    assert found["drawn"]
    assert found["wide"] <= found["window"]
    shot = tmp_path / "shot.png"
    command = [browser, *flags, f"--screenshot={shot}", f"--window-size={width + 20},{height + 20}", str(frame)]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert len(np.unique(np.asarray(Image.open(shot)))) > 50
