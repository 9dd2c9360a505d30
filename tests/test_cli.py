"""The command line: what it takes, says and returns."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_cli
from PIL import Image
from typer.main import get_command

from imletriton.cli import app, run_and_view
from imletriton.generator import Generator
from imletriton.messages import name_flags
from imletriton.runs.checkpoint import save_checkpoint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fit_then_gen_as_the_readme_says(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imletriton.share.views.RECALLED", 20)
    assert run_cli(monkeypatch, "fit", str(recipe_file), "--device", "cpu", "--set", "train.iterations=20") == 0
    output = capsys.readouterr().out
    assert re.match(r"Training tiny on faces: loading PyTorch\.\nReading ", output)
    assert re.search(r"\nAbout \d+ seconds? left; the first pool takes about \d+ seconds?\.\nstep 10", output)
    assert re.search(r"step 10/20  loss \d\.\d+  \d+ images/s  pool \d+/s  \d+ MiB  0:00:\d\d left", output)
    assert "imletriton gen runs/tiny-001 --n 100" in output
    assert run_cli(monkeypatch, "gen", "-n", "3", "--device", "cpu") == 0
    output = capsys.readouterr().out
    assert "The newest run is runs/tiny-001" in output
    assert "holds 3 samples: 3 made" in output
    assert len(list(Path("runs/tiny-001/gen/000020-seed-0").glob("*.png"))) == 3
    for words in ([], ["runs/tiny-001", "distances"], ["samples"], ["samples", "-n", "4", "--out", "my/own.png"]):
        assert run_cli(monkeypatch, "show", *words) == 0
    output = capsys.readouterr().out
    assert output.count("figures/samples.png") == output.count("figures/distances.png") == 2
    assert Image.open("my/own.png").height < Image.open("runs/tiny-001/figures/samples.png").height
    for resumed in ((str(recipe_file), "--resume"), ("--resume",), ("--resume", "runs/tiny-001")):
        assert run_cli(monkeypatch, "fit", *resumed, "--set", "train.iterations=21") == 0
        output = capsys.readouterr().out
        assert re.search(r"runs/tiny-001: on from step 2[01]", output)
        assert ("The newest run is runs/tiny-001." in output) == (resumed == ("--resume",))


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
for arguments in [["--help"], *json.load(sys.stdin)]:
    sys.argv, shown, error = ["imletriton", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as stopped:
            results.append([stopped.code, error.getvalue(), shown.getvalue()])
        except AssertionError as refused:
            results.append(["went on", str(refused), shown.getvalue()])
    if arguments == ["--help"]:
        results.append(sorted({"numpy", "pydantic"} & sys.modules.keys()))
print(json.dumps(results))
"""
FIT = ["fit", "tiny.toml"]
ADAPTIVE = [*FIT, "--set", "selection.strategy=adaptive", "--set"]
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
    ([*ADAPTIVE, "selection.delta=1.0"], "selection.delta = 1.0: input should be less than 1"),
    ([*ADAPTIVE, "selection.delta=-0.1"], "selection.delta = -0.1: input should be greater"),
    ([*ADAPTIVE, "selection.epsilon=0.1"], "selection.epsilon is not a key"),
    ([*FIT, "--set", "train.betas=[0.9, 1.0]"], "train.betas.1 = 1.0"),
    ([*FIT, "--set", "train.iterations='20'"], "train.iterations = '20'"),
    ([*FIT, "--seed", "-1"], "train.seed = -1"),
    ([*FIT, "--set", "selection.pool=10.5"], "selection.pool: 10.5"),
    ([*FIT, "--set", "generator.mapping=nine"], "did you mean 'none'?"),
    ([*FIT, "--set", "generator.widht=3"], "generator.widht is not a key; did you mean 'width'?"),
    ([*FIT, "--set", "generator.decoder=mlp"], "images need generator.decoder 'vdvae'"),
    ([*FIT, "--set", "generator.mapping=none", "--set", "generator.mapping_layers=2"], "it belongs to 'mlp'."),
    ([*FIT, "--set", "data.resolution=64"], "generator.blocks end at resolution 16"),
    ([*FIT, "--set", "generator.blocks=4x1,16m8"], "'16m8' starts at 8, the block before it ends at 4"),
    ([*FIT, "--set", "data.source=nowhere"], "data.source 'nowhere' is not a folder"),
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
    (["fit", "x" * 300], "is too long for the name of a file"),
    (["fit"], "fit needs a folder of pictures, or a recipe such as faces; --resume alone resumes the newest run."),
    (["fit", "run"], "run is a folder: name a recipe's file, or add --resume to continue a run."),
    (["fit", "--resume"], "There is no run in runs/: start one by `imletriton fit RECIPE`, or name a run's folder."),
    (["fit", "--resume", "rum"], "rum is not a folder: name the folder of a run."),
    (["fit", "--resume", "./rum"], "rum is not a folder: name the folder of a run."),
    (["fit", "--resume", "empty"], "empty holds no run to resume: name the folder of a run, such as runs/NAME-001."),
    (["fit", "--resume", "none.toml"], "none.toml is neither a file nor the name of a recipe"),
    (["fit", "run", "--resume", "--run-dir", "empty"], "run and --run-dir both say which run is meant"),
    (["fit", "--resume", "run", "--set", "train.iterations=9"], "at step 10 already: set train.iterations"),
    (["paint"], "paint"),
    (["gen"], "There is no run with a checkpoint in runs/"),
    (["gen", "nowhere"], "nowhere is not a folder: name a run or a checkpoint."),
    (["gen", "empty"], "empty holds no config.json"),
    (["gen", "run", "-n", "0"], "--n must be from 1 to 1000000, not 0."),
    (["gen", "run", "--n", "many"], "'--n'"),
    (["gen", "run", "--seed", "-1"], "--seed must be from 0 to 4294967295, not -1."),
    (["gen", "run", "--device", "gpu"], "--device 'gpu' is not known"),
    (["gen", "run", "--out", "file/below"], "file/below cannot be written (Not a directory): make room, or"),
    (["gen", "run", "--out", "pictures"], "pictures holds other files: choose an empty or new folder with --out DIR."),
    (["gen", "run", "--from", "none.safetensors"], "none.safetensors cannot be read (No such file or directory)"),
    (["gen", "run", "--from", "file"], "file is not a .safetensors file, or is damaged"),
    (["gen", "run", "--from", "file", "--seed", "3"], "--from says which samples are written: leave --seed out."),
    (["gen", "run", "--from", "file", "--like", "pictures/a.png"], "--from and --like both say which"),
    (["gen", "run", "--distance", "0.2"], "name it with --like FILE.png."),
    (["gen", "run", "--like", "pictures/a.png"], "pictures/a.png does not"),
    (
        ["project", "none.jpg", "--run", "run"],
        "none.jpg cannot be read (No such file or directory): give other photos.",
    ),
    (["project", "pictures", "--run", "run"], "pictures is a folder: name the photos in it."),
    (["project", "file", "--run", "run"], "file cannot be read (not a PNG, JPEG, WebP, BMP or TIFF file)"),
    (["project", "pictures/a.png", "one/a.png", "--run", "run"], "project them one by one, each into its own --out."),
    (["project", "pictures/a.png"], "There is no run with a checkpoint in runs/"),
    (["project", "pictures/a.png", "--run", "run", "--out", "file"], "file is a file: name a folder with --out DIR."),
    (["eval"], "There is no run with a checkpoint in runs/"),
    (["eval", "nowhere"], "nowhere is not a folder: name a run or a checkpoint."),
    (["eval", "empty"], "empty holds no config.json"),
    (["eval", "run", "--n", "1"], "--n must be from 2 to 1000000, not 1."),
    (["eval", "run", "--weights", "good"], "--weights 'good' is not known: use pretrained or random."),
    (["eval", "run", "--metrics", "fid,recal"], "'recal' is not known: did you mean 'recall'?"),
    (["eval", "run", "--metrics", "backtracking"], "backtracking needs a run that was trained with data.holdout"),
    (["eval", "run", "--device", "gpu"], "--device 'gpu' is not known"),
    (["eval", "run", "--data", "nowhere"], "data.source 'nowhere' is not a folder"),
    (["eval", "run", "--data", "toy2d"], "toy2d holds points, not pictures"),
    (["eval", "--samples", "pictures"], "eval needs a run, or --samples DIR with --data SOURCE"),
    (["eval", "--samples", "one", "--data", "faces"], "one holds one image only (a.png): give at least two."),
    (["eval", "--samples", "nowhere", "--data", "faces"], "--samples nowhere is not a folder"),
    (["eval", "run", "--seed", "-1"], "--seed must be from 0"),
    (["eval", "run", "-o", "empty"], "empty is a folder: name the JSON file with --out."),
    (["show"], "There is no run with a checkpoint in runs/"),
    (["show", "smaples"], "smaples is neither a run nor a view: did you mean 'samples'?"),
    (["show", "one", "two", "three"], "(three)"),
    (
        ["show", "run", "curves", "-n", "9"],
        "--n is for the views samples and nearest: name one of them, or leave --n out.",
    ),
    (["show", "run", "samples", "--seed", "-1"], "--seed must be from 0"),
    (["show", "run", "--device", "gpu"], "--device 'gpu' is not known"),
    (["show", "run", "curves", "--between", "file", "file"], "--between is for interpolations"),
    (["show", "run", "smaples"], "did you mean 'samples'?"),
    (
        ["show", "runs/none"],
        "runs/none is not a folder, and is not looked for on the Hugging Face Hub because runs/ means",
    ),
    (["gen", "run/checkpoint"], "because run/ means a folder here: did you mean run/checkpoints?"),
    (["gen", "user/model"], "The Hugging Face Hub cannot be reached, and user/model is not in its cache"),
    (["eval", "lone"], "lone comes without its recipe, so the pictures that it was trained on are not known"),
    (["eval", "lone", "--data", "faces", "--metrics", "backtracking"], "backtracking needs a run that was trained"),
    (["show", "run", "vidoe"], "did you mean 'video'?"),
    (["show", "run", "video", "--seconds", "0"], "--seconds must be from 1 to 600, not 0."),
    (
        ["show", "run", "video", "--out", "a.png"],
        "a.png is named neither like an MP4 file nor like a WebP file: end --out",
    ),
    (["show", "run", "video", "--grid", "99x1"], "--grid must be from 1x1 to 16x16, not 99x1."),
    (["show", "run", "video", "--seeds", "1,x"], "--seeds '1,x' is not a list of whole numbers"),
    (["show", "run", "video", "--grid", "three"], "--grid 'three' is not known"),
    (["show", "run", "video", "--seed", "3"], "--seed is not for a video: leave it out."),
    (["show", "run", "samples", "--grid", "2x2"], "--grid is for a video: see `imletriton show video`."),
    (["show", "run", "interpolate", "--between", "file", "file"], "file is not a .safetensors file, or is damaged"),
    (["show", "empty", "samples"], "empty holds no config.json"),
    (["show", "run", "--out", "a.png"], "--out is for one picture: name one of the views, such as samples."),
    (["show", "run", "samples", "--out", "a.jpg"], "a.jpg is not named like a PNG file: end --out in .png."),
    (
        ["show", "run", "curves", "--out", "file/a.png"],
        "file/a.png cannot be written (Not a directory): choose another",
    ),
    (["report"], "There is no run with a checkpoint in runs/"),
    (["report", "nowhere"], "nowhere is not a folder: name a run or a checkpoint."),
    (["report", "run", "--out", "empty"], "empty is a folder: name the HTML file with --out."),
    (
        ["report", "run", "--out", "r.jpg"],
        "r.jpg is not named like an HTML file: end --out in .html.",
    ),
    (["report", "run", "--out", "file/r.html"], "file/r.html cannot be written (Not a directory): choose another file"),
    (["data", "get", "dgo"], "did you mean 'dog'?"),
    (["data", "get", "skulls"], "skulls has no address to fetch it from"),
    (["data", "check", "nowhere"], "nowhere is not a folder"),
    (["data", "check", "empty"], "empty holds no images"),
]
RIGHT = [
    FIT,
    [*FIT, "--resume", "--run-dir", "run", "--set", "log.every=5"],
    ["fit", "--resume", "run"],
    ["fit", "run", "--resume", "--set", "data.source=pictures", "--set", "log.every=5"],
    ["fit", "--resume", "--run-dir", "run"],
    [*FIT, "--run-dir", "new/run", "--device", "cuda:1", "--seed", "3"],
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
    ["show", "run", "nearest", "-n", "20", "--seed", "3", "--device", "cpu"],
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
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(folder.rglob("*")) == before  # checks create nothing
    shown, loaded, *results = json.loads(done.stdout)
    named = {" ".join(arguments): result for arguments, result in zip(commands, results, strict=True)}
    return named | {"--help": shown, "loaded": loaded}


def test_help_waits_for_nothing_heavy(outcomes: dict[str, Any]) -> None:
    code, _, shown = outcomes["--help"]
    assert code == 0
    assert "Train a generator on a folder of pictures" in shown
    assert outcomes["loaded"] == []


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a)[:99] for a, _ in WRONG])
def test_a_mistake_is_one_sentence_and_exit_code_2_before_pytorch_is_loaded(
    outcomes: dict[str, Any], arguments: list[str], words: str
) -> None:
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
        assert re.fullmatch(r"(The newest run is run\.\n)?Training tiny on \w+: loading PyTorch\.\n", shown)


def test_what_only_pytorch_can_tell_is_one_sentence_too(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no picture")
    Path("broken/b.png").write_bytes(b"no picture")
    for more, words in ((["--device", "cuda"], "no CUDA GPU"), (["--set", "data.source=broken"], "a.png")):
        assert run_cli(monkeypatch, "fit", str(recipe_file), *more) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not Path("runs").exists()


def every_command() -> dict[str, Any]:
    """The commands and groups of commands, by what one types."""
    found = {"": get_command(app)}
    for name, group in list(found.items()):
        found |= {f"{name} {sub}".strip(): command for sub, command in group.commands.items()}
    for name in ("data", "recipes"):
        found |= {f"{name} {sub}": command for sub, command in found[name].commands.items()}
    return found


@pytest.mark.parametrize("name", every_command())
def test_every_help_ends_with_two_examples_that_are_right(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for flag in ("-h", "--help"):
        assert run_cli(monkeypatch, *name.split(), flag) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    first, second = shown[0].rstrip().rpartition("Examples:\n")[2].splitlines()
    for example in (first, second):
        program, *words = shlex.split(example.partition("|")[0])
        assert program == "imletriton"
        assert " ".join(words).startswith(name)
        commands = every_command()
        group = next(part for part in (" ".join(words[:2]), words[0]) if part in commands)
        commands[group].make_context(group, words[len(group.split()) :])  # raises where a flag is wrong


@pytest.mark.parametrize("name", every_command())
def test_every_option_is_explained_and_the_same_everywhere(name: str) -> None:
    short = {"--n": "-n", "--out": "-o"}
    for param in every_command()[name].params:
        if param.param_type_name == "option":
            assert param.help and param.help[0].isalnum() and param.help.endswith("."), param.opts
            assert {short[flag] for flag in param.opts if flag in short} <= {*param.opts}


def test_the_version_and_the_names_of_commands_for_a_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "--version") == 0
    assert re.fullmatch(r"imletriton \d+\.\d+\.\d+\n", capsys.readouterr().out)
    for key, value in {
        "IMLETRITON_COMPLETE": "complete_bash",
        "COMP_WORDS": "imletriton rep",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(f"_{key}" if key.startswith("IMLE") else key, value)
    assert run_cli(monkeypatch) == 0
    assert capsys.readouterr().out.split() == ["report"]


def test_a_seed_of_fit_is_that_of_the_recipe(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr("imletriton.commands.fit.fit", lambda *arguments: told.extend(arguments) or sys.exit(7))
    assert run_cli(monkeypatch, "fit", str(recipe_file), "--seed", "5") == 7
    assert {"train.seed": 5} in told


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], (None, None)),
        (["samples"], (None, "samples")),
        (["video"], (None, "video")),
        (["./samples"], ("./samples", None)),
        (["mine"], ("mine", None)),
        (["user/model"], ("user/model", None)),
        (["samples", "samples"], ("samples", "samples")),
        (["runs/mine-001", "curves"], ("runs/mine-001", "curves")),
    ],
)
def test_show_takes_the_name_of_a_view_as_the_view_and_anything_else_as_a_run(
    words: list[str], meant: tuple[str | None, str | None]
) -> None:
    Path("samples").mkdir()
    assert run_and_view(*(*words, None, None)[:2]) == meant


def test_an_interrupted_fit_exits_with_130_and_says_how_to_go_on(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from imletriton.errors import Interrupted

    devices: list[str | None] = [None, "cpu", None]

    def stopped(*arguments: object) -> None:
        raise Interrupted(Path("runs/tiny-001"), 12, devices.pop(0))

    monkeypatch.setattr("imletriton.commands.fit.fit", stopped)
    for more in ("", " --device cpu"):
        assert run_cli(monkeypatch, "fit", str(recipe_file)) == 130
        assert capsys.readouterr().err.endswith(f"\n  imletriton fit --resume runs/tiny-001{more}\n")
    for name, value in {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run_cli(monkeypatch, "fit", str(recipe_file)) == 130
    told = capsys.readouterr().err
    assert "torchrun --nnodes=2 --rdzv-backend=... --rdzv-endpoint=... --nproc-per-node=2 -m imletriton fit" in told


def test_messages_name_parameters_and_the_command_line_its_flags() -> None:
    for python, shell in {
        "`n` must be at least 1, not 0.": "--n must be at least 1, not 0.",
        "add `resume=True`, or choose another `run_dir`.": "add --resume, or choose another --run-dir.",
        "choose a folder with `out=DIR`.": "choose a folder with --out DIR.",
        "ask for it with `device='cpu'`.": "ask for it with --device cpu.",
        "name it with `data.source=FOLDER`.": "name it with --set data.source=FOLDER.",
        "change `train.batch_size` here": "change --set train.batch_size=... here",
        "take `pretrained=False`.": "take --weights random.",
        "leave `latents` out.": "leave --from out.",
        "`imletriton show` draws them, not `view` or `recipe.toml`.": None,
    }.items():
        assert name_flags(python, app) == (shell or python)


def test_only_the_command_line_names_flags() -> None:
    package = Path(__file__).parents[1] / "imletriton"
    other_programs = {"--query-gpu=driver_version", "--format=csv,noheader"}  # nvidia-smi's
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        ]
        texts = [
            re.sub("`imletriton [^`]*`", "", text) for text in texts if text not in other_programs
        ]  # whole commands
        named = [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)]
        assert not named or file.name in ("cli.py", "messages.py"), (file, named)


def test_a_run_is_suggested_where_its_folder_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/mine-001").mkdir(parents=True)
    for command in ("gen", "eval", "show", "report", "explore"):
        assert run_cli(monkeypatch, command, "mine-001") == 2
        assert "did you mean runs/mine-001?" in capsys.readouterr().err
