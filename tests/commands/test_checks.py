"""A mistake in the input is reported before PyTorch and other slow modules are imported, which takes seconds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from PIL import Image

from imletriton.commands.checks import VIEWS
from imletriton.data import BUILT_IN, count_points, load_points
from imletriton.generator import Generator
from imletriton.runs.checkpoint import save_checkpoint
from imletriton.share.views import Shown
from imletriton.system.checks import check_writable

# Runs commands in a process in which nothing heavy can be imported; prints each one's exit code and error.
WITHOUT = """
import contextlib, io, json, sys, time

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lpips", "scipy", "matplotlib"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Refusing())
time.sleep = lambda seconds: None  # the Hub's client waits before it tries again
from imletriton.cli import main
results = []
for arguments in json.load(sys.stdin):
    sys.argv, shown, error = ["imletriton", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as stopped:
            results.append([stopped.code, error.getvalue(), shown.getvalue()])
        except AssertionError as refused:
            results.append(["went on", str(refused), shown.getvalue()])
print(json.dumps(results))
"""
FIT = ["fit", "tiny.toml"]
WRONG = [
    (["fit", "none.toml"], "none.toml is neither a file nor the name of a recipe"),
    (["fit", "pictures/a.png"], "pictures/a.png is not TOML"),
    ([*FIT, "--set", "train.sed=1"], "train.sed is not a key; did you mean 'seed'?"),
    ([*FIT, "--set", "train.seed"], "section.key=value"),
    ([*FIT, "--set", "train.batch_size=many"], "train.batch_size = 'many'"),
    ([*FIT, "--set", "selection.strategy=adaptve"], "did you mean 'adaptive'?"),
    (
        [*FIT, "--set", "selection.strategy=rejection", "--set", "selection.epsilon=-1"],
        "neither a distance from 0 to 1000000 nor",
    ),
    ([*FIT, "--set", "selection.delta=0.5"], "selection.delta is not a key"),
    ([*FIT, "--set", "generator.mapping=nine"], "did you mean 'none'?"),
    ([*FIT, "--set", "generator.widht=3"], "generator.widht is not a key; did you mean 'width'?"),
    ([*FIT, "--set", "generator.decoder=mlp"], "images need generator.decoder 'vdvae'"),
    ([*FIT, "--set", "generator.mapping=none", "--set", "generator.mapping_layers=2"], "it belongs to 'mlp'."),
    ([*FIT, "--set", "data.resolution=64"], "generator.blocks end at resolution 16"),
    ([*FIT, "--set", "generator.blocks=4x1,16m8"], "'16m8' starts at 8, the block before it ends at 4"),
    ([*FIT, "--set", "data.source=nowhere"], "data.source 'nowhere' is no folder"),
    ([*FIT, "--set", "data.source=datasets/skulls"], "put its pictures into datasets/skulls."),
    ([*FIT, "--set", "data.source=empty"], "empty holds no images"),
    ([*FIT, "--set", "data.source=one"], "one holds one image only (a.png): give at least two."),
    ([*FIT, "--set", "data.holdout=0.001"], "data.holdout 0.001 of 100 data points holds out 0"),
    ([*FIT, "--set", "selection.pool=99"], "selection.pool is 99, fewer than the 100 data points"),
    ([*FIT, "--device", "abacus"], "--device 'abacus' is not known: use cuda or cpu."),
    ([*FIT, "--device", "cuda:128"], "--device 'cuda:128' is not known: use cuda or cpu."),
    ([*FIT, "--run-dir", "run"], "run holds a run already: add --resume"),
    ([*FIT, "--run-dir", "file/below"], "file/below cannot be written (Not a directory): choose another --run-dir."),
    ([*FIT, "--resume"], "runs/tiny-* holds no run to resume"),
    ([*FIT, "--resume", "--run-dir", "empty"], "empty holds no run to resume"),
    ([*FIT, "--resume", "--run-dir", "run", "--set", "train.ema=0.5"], "run/recipe.toml in train.ema: resume with"),
    ([*FIT, "--resume", "--run-dir", "run", "--set", "train.iterations=9"], "at step 10 already: set train.iterations"),
    (["fit"], "fit needs a folder of pictures, or a recipe such as faces; --resume alone resumes the newest run."),
    (["fit", "run"], "run is a folder: name a recipe's file, or add --resume to go on with a run."),
    (["fit", "--resume"], "No run lies in runs/: start one by `imletriton fit RECIPE`, or name a run's folder."),
    (["fit", "--resume", "rum"], "rum is no folder: name the folder of a run."),
    (["fit", "--resume", "./rum"], "rum is no folder: name the folder of a run."),
    (["fit", "--resume", "empty"], "empty holds no run to resume: name the folder of a run, such as runs/NAME-001."),
    (["fit", "--resume", "none.toml"], "none.toml is neither a file nor the name of a recipe"),
    (["fit", "run", "--resume", "--run-dir", "empty"], "run and --run-dir both say which run is meant"),
    (["fit", "--resume", "run", "--set", "train.iterations=9"], "at step 10 already: set train.iterations"),
    (["gen"], "No run with a checkpoint lies in runs/"),
    (["gen", "nowhere"], "nowhere is no folder: name a run or a checkpoint."),
    (["gen", "empty"], "empty holds no config.json"),
    (["gen", "run", "--n", "0"], "--n must be from 1 to 1000000, not 0."),
    (["gen", "run", "--seed", "-1"], "--seed must be from 0 to 2^32 - 1, not -1."),
    (["gen", "run", "--device", "gpu"], "--device 'gpu' is not known"),
    (["gen", "run", "--out", "file/below"], "file/below cannot be written (Not a directory): make room, or"),
    (["gen", "run", "--out", "pictures"], "pictures holds other files: choose an empty or new folder with --out DIR."),
    (["gen", "run", "--from", "none.safetensors"], "none.safetensors cannot be read (No such file or directory)"),
    (["gen", "run", "--from", "file"], "file is not a .safetensors file, or is damaged"),
    (["gen", "run", "--from", "file", "--seed", "3"], "--from says which samples are written"),
    (
        ["project", "none.jpg", "--run", "run"],
        "none.jpg cannot be read (No such file or directory): give other photos.",
    ),
    (["project", "pictures", "--run", "run"], "pictures is a folder: name the photos in it."),
    (["project", "file", "--run", "run"], "file cannot be read (not a PNG, JPEG, WebP, BMP or TIFF file)"),
    (["project", "pictures/a.png", "one/a.png", "--run", "run"], "project them one by one, each into its own --out."),
    (["project", "pictures/a.png"], "No run with a checkpoint lies in runs/"),
    (["project", "pictures/a.png", "--run", "run", "--out", "file"], "file is a file: name a folder with --out DIR."),
    (["eval"], "No run with a checkpoint lies in runs/"),
    (["eval", "nowhere"], "nowhere is no folder: name a run or a checkpoint."),
    (["eval", "empty"], "empty holds no config.json"),
    (["eval", "run", "--n", "1"], "--n must be from 2 to 1000000, not 1."),
    (["eval", "run", "--weights", "good"], "--weights 'good' is not known: use pretrained or random."),
    (["eval", "run", "--metrics", "fid,recal"], "'recal' is not known: did you mean 'recall'?"),
    (["eval", "run", "--metrics", "backtracking"], "backtracking needs a run that was trained with data.holdout"),
    (["eval", "run", "--device", "gpu"], "--device 'gpu' is not known"),
    (["eval", "run", "--data", "nowhere"], "data.source 'nowhere' is no folder"),
    (["eval", "run", "--data", "toy2d"], "toy2d holds points, not pictures"),
    (["eval", "--samples", "pictures"], "eval needs a run, or --samples DIR with --data SOURCE"),
    (["eval", "--samples", "one", "--data", "faces"], "--samples one holds one picture only"),
    (["eval", "--samples", "nowhere", "--data", "faces"], "--samples nowhere is no folder"),
    (["show"], "No run with a checkpoint lies in runs/"),
    (["show", "smaples"], "did you mean 'samples'?"),
    (["show", "run", "smaples"], "did you mean 'samples'?"),
    (
        ["show", "runs/none"],
        "runs/none is no folder, and is not looked for on the Hugging Face Hub because runs/ means",
    ),
    (["gen", "run/checkpoint"], "because run/ means a folder here: did you mean run/checkpoints?"),
    (["gen", "user/model"], "The Hugging Face Hub cannot be reached, and user/model is not in its cache"),
    (["eval", "lone"], "lone comes without the recipe and the state of its training, so nothing says"),
    (["eval", "lone", "--data", "faces", "--metrics", "backtracking"], "backtracking needs a run that was trained"),
    (["show", "run", "vidoe"], "did you mean 'video'?"),
    (["show", "run", "video", "--seconds", "0"], "--seconds must be from 1 to 600, not 0."),
    (
        ["show", "run", "video", "--out", "a.png"],
        "a.png is named neither like an MP4 file nor like a WebP file: end --out",
    ),
    (["show", "run", "video", "--grid", "99x1"], "--grid must be from 1x1 to 16x16, not 99x1."),
    (["show", "run", "samples", "--grid", "2x2"], "--grid is for a video: name that"),
    (["show", "run", "interpolate", "--between", "file", "file"], "file is not a .safetensors file, or is damaged"),
    (["show", "empty", "samples"], "empty holds no config.json"),
    (["show", "run", "--out", "a.png"], "name it, such as `imletriton show run samples --out a.png`"),
    (
        ["show", "run", "curves", "--out", "file/a.png"],
        "file/a.png cannot be written (Not a directory): choose another",
    ),
    (["report"], "No run with a checkpoint lies in runs/"),
    (["report", "nowhere"], "nowhere is no folder: name a run or a checkpoint."),
    (["report", "run", "--out", "empty"], "empty is a folder: name the HTML file with --out."),
    (
        ["report", "run", "--out", "r.jpg"],
        "r.jpg is not named like an HTML file, which is what is written: end --out in",
    ),
    (["report", "run", "--out", "file/r.html"], "file/r.html cannot be written (Not a directory): choose another file"),
    (["data", "get", "dgo"], "did you mean 'dog'?"),
    (["data", "get", "skulls"], "skulls has no address to fetch it from"),
    (["data", "check", "nowhere"], "nowhere is no folder"),
    (["data", "check", "empty"], "empty holds no images"),
]
RIGHT = [
    FIT,
    [*FIT, "--resume", "--run-dir", "run", "--set", "log.every=5"],
    ["fit", "--resume", "run"],
    ["fit", "run", "--resume", "--set", "data.source=pictures", "--set", "log.every=5"],
    ["fit", "--resume", "--run-dir", "run"],
    [*FIT, "--run-dir", "new/run", "--device", "cuda:1"],
    ["gen", "run"],
    ["gen", "run/checkpoints/000010"],
    ["gen", "lone"],
    ["eval", "lone", "--data", "faces"],
    ["eval", "run/checkpoints/000010"],
    ["show", "run/checkpoints/000010"],
    ["show", "lone", "samples"],
    ["report", "lone"],
    ["eval", "run", "--samples", "pictures", "--metrics", "fid, kid"],
    ["show", "run", "latents"],
    ["show", "run", "video", "--seeds", "1,5"],
    ["project", "pictures/a.png", "--run", "run"],
    ["report", "run"],
    ["data", "check", "pictures"],
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exit code, error and output of each command, all called in a folder with a run and some pictures."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("one", "pictures", "empty", "lone"):
        (folder / name).mkdir()
    for name in ("one/a.png", "pictures/a.png", "pictures/b.png"):
        Image.new("RGB", (9, 9)).save(folder / name)
    (folder / "file").touch()
    model = Generator(latent_dim=2, mapping="none", decoder="mlp", width=4)
    model.save_pretrained(folder / "lone")
    save_checkpoint(folder / "run", 10, model, {}, {"step": 10, "data": ""}, keep=1)
    for name in ("tiny.toml", "run/recipe.toml"):
        (folder / name).write_text(TINY)
    before = sorted(folder.rglob("*"))
    commands = [*(arguments for arguments, _ in WRONG), *RIGHT]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        input=json.dumps(commands),
        cwd=folder,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(folder.rglob("*")) == before  # checks create nothing
    return {" ".join(arguments): result for arguments, result in zip(commands, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_mistake_is_reported_without_pytorch(outcomes: dict[str, Any], arguments: list[str], words: str) -> None:
    code, error, _ = outcomes[" ".join(arguments)]
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert code == 2


@pytest.mark.parametrize("arguments", RIGHT, ids=[" ".join(a) for a in RIGHT])
def test_what_is_right_goes_on_to_pytorch(outcomes: dict[str, Any], arguments: list[str]) -> None:
    *outcome, shown = outcomes[" ".join(arguments)]
    assert outcome == ["went on", "torch was imported"]
    if arguments[0] == "fit":
        assert re.fullmatch(r"imletriton [\d.]+ trains tiny on \w+: loading PyTorch\.\n", shown)


def test_views_are_checked_by_the_names_that_can_be_drawn() -> None:
    assert {f"draw_{view}" for view in VIEWS} == {name for name in vars(Shown) if name.startswith("draw_")}


@pytest.mark.parametrize("source", BUILT_IN)
@pytest.mark.parametrize(("mirror", "holdout"), [(False, 0.0), (True, 0.1)])
def test_points_are_counted_as_they_are_loaded(source: str, mirror: bool, holdout: float) -> None:
    assert count_points(source, mirror, holdout) == len(load_points(source, 8, mirror, holdout))


def test_whether_a_folder_can_be_written_to_is_checked_without_a_trace(tmp_path: Path) -> None:
    """So that a process which is killed meanwhile leaves none either."""
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("files without a name cannot be made here")
    before = tmp_path.stat().st_mtime_ns
    check_writable(tmp_path / "new" / "run", "run", "choose another")
    assert tmp_path.stat().st_mtime_ns == before
