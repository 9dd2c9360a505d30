import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_cli
from PIL import Image

from imletriton.cli import name_flags


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fit_then_gen_as_the_readme_says(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "fit", str(recipe_file), "--device", "cpu", "--set", "train.iterations=20") == 0
    output = capsys.readouterr().out
    assert re.match(r"imletriton [\d.]+ trains tiny on faces: loading PyTorch\.\nReading ", output)
    assert re.search(r"\nAbout \d+ seconds? to come; the first pool takes about \d+ seconds?\.\nstep 10", output)
    assert re.search(r"step 10/20  loss \d\.\d+  \d+ images/s  pool \d+/s  \d+ MiB  0:00:\d\d left", output)
    assert "imletriton gen runs/tiny-001 --n 100" in output
    assert run_cli(monkeypatch, "gen", "--n", "3", "--device", "cpu") == 0
    output = capsys.readouterr().out
    assert "The newest run is runs/tiny-001" in output
    assert "holds 3 samples: 3 made" in output
    assert len(list(Path("runs/tiny-001/gen/000020-seed-0").glob("*.png"))) == 3
    for words in (
        [],
        ["runs/tiny-001"],
        ["samples"],
        ["runs/tiny-001", "distances"],
        ["samples", "--out", "my/own.png"],
    ):
        assert run_cli(monkeypatch, "show", *words) == 0
    output = capsys.readouterr().out
    assert output.count("figures/samples.png") == output.count("figures/distances.png") == 3
    assert Path("my/own.png").is_file()
    for resumed in ((str(recipe_file), "--resume"), ("--resume",), ("--resume", "runs/tiny-001")):
        assert run_cli(monkeypatch, "fit", *resumed, "--set", "train.iterations=21") == 0
        output = capsys.readouterr().out
        assert re.search(r"runs/tiny-001: on from step 2[01]", output)
        assert ("The newest run is runs/tiny-001." in output) == (resumed == ("--resume",))


ADAPTIVE = ["--set", "selection.strategy=adaptive", "--set"]
BAD = [
    (["fit", "none.toml"], "none.toml is neither a file nor the name of a recipe"),
    (["fit", "{recipe}", "--set", "train.sed=1"], "train.sed is not a key; did you mean 'seed'?"),
    (["fit", "{recipe}", "--set", "train.seed"], "section.key=value"),
    (["fit", "{recipe}", "--set", "train.batch_size=many"], "train.batch_size = 'many'"),
    (["fit", "{recipe}", "--set", "data.resolution=64"], "generator.blocks end at resolution 16"),
    (["fit", "{recipe}", "--set", "selection.pool=5", "--device", "cpu"], "selection.pool is 5"),
    (["fit", "{recipe}", "--set", "data.source=nowhere"], "'nowhere' is no folder"),
    (["fit", "{recipe}", "--set", "data.source=one"], "one image only"),
    (["fit", "{recipe}", "--set", "data.source=empty"], "holds no images"),
    (["fit", "{recipe}", "--set", "data.source=broken"], "a.png"),
    (["fit", "{recipe}", "--resume"], "no run to resume"),
    (["fit", "{recipe}", "--device", "cuda"], "no CUDA GPU"),
    (["gen"], "No run with a checkpoint lies in runs/"),
    (["eval"], "No run with a checkpoint lies in runs/"),
    (["eval", "--samples", "one"], "--samples DIR with --data SOURCE"),
    (["eval", "nowhere"], "nowhere is no folder"),
    (["report"], "No run with a checkpoint lies in runs/"),
    (["gen", "--n", "0"], "--n must be from 1 to 1000000"),
    (["gen", "--seed", "-1", "nowhere"], "--seed must be from 0"),
    (["fit", "{recipe}", "--device", "meta"], "use cuda or cpu"),
    (["fit", "{recipe}", "--set", "train.betas=[0.9, 1.0]"], "train.betas.1 = 1.0"),
    (["fit", "{recipe}", "--set", "train.iterations='20'"], "train.iterations = '20'"),
    (["fit", "{recipe}", "--set", "selection.pool=10.5"], "selection.pool: 10.5"),
    (["fit", "{recipe}", "--set", "selection.strategy=adaptve"], "did you mean 'adaptive'?"),
    (["fit", "{recipe}", *ADAPTIVE, "selection.delta=1.0"], "selection.delta = 1.0: input should be less than 1"),
    (["fit", "{recipe}", *ADAPTIVE, "selection.delta=-0.1"], "selection.delta = -0.1: input should be greater"),
    (["fit", "{recipe}", *ADAPTIVE, "selection.epsilon=0.1"], "selection.epsilon is not a key"),
    (["gen", "nowhere"], "nowhere is no folder"),
    (["gen", "--n", "many"], "'--n'"),
    (["show"], "No run with a checkpoint lies in runs/"),
    (["show", "runs/none"], "runs/none is no folder"),
    (["show", "one", "sample"], "did you mean 'samples'?"),
    (["show", "one", "two", "three"], "show takes a run and what to show"),
    (["show", "one", "--out", "a.png"], "name it, such as `imletriton show one samples --out a.png`"),
    (["show", "one", "samples", "--out", "a.jpg"], "a.jpg is not named like a PNG file"),
    (["fit", "x" * 300], "is too long for the name of a file"),
    (["fit"], "fit needs a folder of pictures, or a recipe such as faces; --resume alone resumes the newest run."),
    (["fit", "--resume"], "No run lies in runs/: start one by `imletriton fit RECIPE`"),
    (["paint"], "paint"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(
    recipe_file: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for folder in ("one", "empty", "broken"):
        Path(folder).mkdir()
    Image.new("RGB", (9, 9)).save("one/a.png")
    Path("broken/a.png").write_bytes(b"no picture")
    assert run_cli(monkeypatch, *(a.format(recipe=recipe_file) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; from imletriton.cli import main; import atexit;"
    code += "atexit.register(lambda: print(sorted({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))); main()"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "fit" in output
    assert output.strip().endswith("[]")


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
        "`imletriton show` draws them, not `view` or `recipe.toml`.": None,
    }.items():
        assert name_flags(python) == (shell or python)


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
        named = [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text) and text not in other_programs]
        assert not named or file == package / "cli.py", (file, named)


def test_a_run_is_suggested_where_its_folder_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/mine-001").mkdir(parents=True)
    for command in ("gen", "eval", "show", "report", "explore"):
        assert run_cli(monkeypatch, command, "mine-001") == 2
        assert "did you mean runs/mine-001?" in capsys.readouterr().err
