"""What takes too much memory is refused before it is spent, and where memory runs out all the same, that is told."""

import io
import re
import resource
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import processes
import pytest
import torch
from conftest import run_cli
from torch._subclasses.fake_tensor import FakeTensorMode

from imletriton.cli import main
from imletriton.commands.fit import fit
from imletriton.distance import LPIPS, Bands, Euclidean
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.training import memory
from imletriton.training.memory import check_memory, needed, step_memory

RECIPES = Path(__file__).parents[2] / "recipes"
TOO_MUCH = [
    ("selection.pool=999999999n", r"lower selection\.pool to \d+\."),
    ("generator.width=30000", r"lower generator\.width to \d+( or .*)?\."),
    ("generator.latent_dim=100000", r"lower generator\.latent_dim to \d+\."),
    ("train.batch_size=1000000", r"lower train\.batch_size to \d+( or .*)?\."),
    ("generator.mapping_layers=4294967296", r"mapping_layers = 4294967296: input should be less than or equal to 1000"),
    ("generator.blocks=4x100000,16m4", "'4x100000' makes more than 1000 blocks"),
    ("data.resolution=65536", r"data\.resolution = 65536: input should be less than or equal to 8192"),
    ("data.resolution=1600000000000", r"input should be less than or equal to 8192"),
]


@pytest.fixture(autouse=True)
def _sixteen_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda: 16 * 2**30)


@pytest.mark.parametrize(("override", "words"), TOO_MUCH, ids=[override for override, _ in TOO_MUCH])
def test_too_much_is_refused_at_once_in_one_sentence(
    override: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.process_time()
    command = ["fit", str(RECIPES / "faces.toml"), "--device", "cpu", "--set", override]
    assert run_cli(monkeypatch, *command) == 2
    assert time.process_time() - began < 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_what_would_fit_fits_and_hardly_more_does() -> None:
    pool = {"selection.pool": "999999999n"}
    with pytest.raises(InputError, match=r"lower selection\.pool to") as caught:
        check_memory(Recipe.load(RECIPES / "faces.toml", pool), bfloat16=False)
    most = int(re.search(r"(\d+)\.$", str(caught.value))[1])
    check_memory(Recipe.load(RECIPES / "faces.toml", {"selection.pool": most}), bfloat16=False)
    more = {"selection.pool": int(1.1 * most)}
    with pytest.raises(InputError):
        check_memory(Recipe.load(RECIPES / "faces.toml", more), bfloat16=False)
    check_memory(Recipe.load(RECIPES / "faces.toml", more | {"selection.share": 0.5}), bfloat16=False)  # a half at once


@pytest.mark.parametrize(
    ("changes", "gpu", "words"),
    [
        (
            {"data.resolution": 4096, "generator.blocks": "1x4,512m1,4096m512"},
            None,
            r"GiB of memory, and 16.0 GiB are free here: lower data.resolution to 512, where generator.blocks must",
        ),
        (
            {"data.resolution": 8192, "generator.blocks": "1x4,256m1,4096m256", "generator.patch": 2},
            None,
            r"GiB of memory, and 16.0 GiB are free here: lower data.resolution to 512, where generator.blocks must",
        ),
        (
            {"train.batch_size": 10000},
            None,
            r"here: lower train\.batch_size to \d+\.$",
        ),  # VGG16 needs 16x16, which is too much
        ({"train.batch_size": 4000}, 80 * 2**30, r"of GPU memory, and 80.0 GiB are free here: lower train.batch_size"),
        ({"log.fid_every": 9, "log.fid_samples": 900000}, 80 * 2**30, r"of memory, and 16.*log.fid_samples to 290000"),
        (
            {"generator.width": 9000, "train.batch_size": 9000},
            2**30,
            r"lower train\.batch_size and generator\.width\.",
        ),
    ],
)
def test_the_message_names_the_keys_that_cost_the_most(changes: dict[str, object], gpu: int | None, words: str) -> None:
    recipe = Recipe.load(RECIPES / "dog.toml", {"data.source": "faces", **changes})
    with pytest.raises(InputError, match=words):
        check_memory(recipe, bfloat16=False, gpu=gpu)


@pytest.mark.parametrize("name", ["faces", "toy2d", "dog"])
def test_a_recipe_of_the_project_fits(name: str) -> None:
    source = "toy2d" if name == "toy2d" else "faces"
    check_memory(Recipe.load(RECIPES / f"{name}.toml", {"data.source": source}), bfloat16=False)


def test_several_processes_share_a_batch() -> None:
    recipe = Recipe.load(RECIPES / "faces.toml", {"train.batch_size": 1000})
    alone, two = (needed(recipe, 100, False, processes).device for processes in (1, 2))
    assert step_memory(recipe, False, 500) - step_memory(recipe, False, 1000) == two - alone


def test_fit_checks_before_it_reads_the_pictures(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imletriton.training.launch.load_points", lambda **keys: pytest.fail("the pictures were read"))
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    with pytest.raises(InputError, match="and 1 MiB are free here: lower"):
        fit(recipe, "run", "cpu")
    assert not Path("run").exists()


EFFICIENTNET = {"distance.network": "efficientnet"}


def kept_memory(recipe: Recipe) -> int:
    """What PyTorch says that a step keeps: weights, gradients, moments, averages, and all for the backward pass."""
    kept = dict[int, int]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        generator, d = Generator(**recipe.generator.model_dump()), recipe.distance
        distance = LPIPS(d.backbone, d.pixel_weight, False, 0) if d.kind == "lpips" else Euclidean()
        distance = Bands(d.network_weight, d.network) if d.kind == "bands" else distance
        z = torch.zeros(recipe.train.batch_size, recipe.generator.latent_dim)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            samples = generator(z)
            distance.loss(samples, torch.zeros_like(samples))
    parameters, networks = (sum(p.numel() for p in module.parameters()) for module in (generator, distance))
    return sum(kept.values()) + 4 * (4 * parameters + networks)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dog", {"train.batch_size": 1}),
        ("dog", {"distance.backbone": "squeeze", "generator.mapping": "none"}),
        ("faces", {"train.batch_size": 200}),
        ("faces", {"train.batch_size": 200, "generator.start": "style", "generator.upsampling": "bilinear"}),
        ("toy2d", {"generator.width": 500, "train.batch_size": 1000}),
        ("faces64", {"train.batch_size": 100, "distance.network_weight": 0.0}),
        ("faces64", {"train.batch_size": 100, "distance.network_weight": 0.3, "distance.network": "untrained"}),
        ("faces64", {"train.batch_size": 100, "distance.network_weight": 0.3, **EFFICIENTNET}),
        ("faces", {"train.batch_size": 200, "distance.kind": "bands", "distance.network_weight": 0.3, **EFFICIENTNET}),
        ("faces64", {"train.batch_size": 100, "generator.patch": 2, "generator.upsampling": "nearest"}),
    ],
)
def test_a_step_takes_as_much_as_is_counted(name: str, changes: dict[str, object]) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.toml", changes)
    with torch.device("meta"):
        weights = sum(p.numel() for p in Generator(**recipe.generator.model_dump()).parameters())
    assert recipe.generator.cost(False).weights == weights
    assert 0.95 < step_memory(recipe, False) / kept_memory(recipe) < 1.45  # with what a backward pass needs beside


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("network", ["untrained", "efficientnet"])
def test_what_the_network_sees_of_each_picture_is_counted(network: str, side: int) -> None:
    changes = {"distance.kind": "bands", "distance.network": network, "data.resolution": side}
    counted, kept = list[float](), list[int]()
    for weight in (0.3, 0.0):
        recipe = Recipe.load(RECIPES / "faces64.toml", changes | {"distance.network_weight": weight})
        counted.append((needed(recipe, 200, False).device - needed(recipe, 100, False).device) / 100)
        parts = Bands(weight, network).target(torch.zeros(1, 3, side, side))
        kept.append(sum(part.nbytes for part in parts))
    assert 0.99 < (counted[0] - counted[1]) / (kept[0] - kept[1]) < 1.2


def limited(recipe: Path, overrides: list[str]) -> str:
    """What `fit` says with little memory where the checks allow too much, with the exit codes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    allowed = (
        mock.patch("imletriton.commands.fit.check_memory_early"),
        mock.patch("imletriton.training.launch.check_memory"),
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as told, allowed[0], allowed[1]:
        for override in overrides:
            sys.argv = ["imletriton", "fit", str(recipe), "--device", "cpu", "--set", override]
            try:
                main()
            except SystemExit as stopped:
                print(stopped.code, file=sys.stderr)
    return told.getvalue()


def test_memory_that_runs_out_is_one_sentence_and_exit_code_1(recipe_file: Path, tmp_path: Path) -> None:
    """NumPy's allocator fails, and then PyTorch's."""
    overrides = ["selection.pool=999999999", "train.batch_size=100000"]
    process = processes.start(tmp_path / "told", limited, recipe_file, overrides)
    assert processes.exit_code(process) == 0
    told = (tmp_path / "told").read_text()
    sentence = r"fault: Memory ran out when .* more were needed: close other programs, or train with a lower .*\.\n1\n"
    assert re.fullmatch(sentence * len(overrides), told)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79.1 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_told_also_where_something_else_was_made_of_it(
    error: Exception, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> None:
        raise InputError("remove your weights.") from error

    monkeypatch.setattr("imletriton.commands.fit.fit", fails)
    assert run_cli(monkeypatch, "fit", str(recipe_file)) == 1
    told = capsys.readouterr().err
    assert told.startswith("fault: Memory ran out")
    assert ("20.00 GiB more" in told) == ("CUDA" in str(error))


def test_memory_that_runs_out_is_told_in_python_as_on_the_command_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79.1 GiB.")

    monkeypatch.setattr("imletriton.training.launch.load_points", fails)
    with pytest.raises(Fault, match=r"^Memory ran out when 20\.00 GiB more were needed: close") as told:
        fit(recipe)
    assert told.value.__context__ is None  # whose frames would keep the memory


def test_the_features_of_too_many_samples_are_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, n, words in [
        ("eval", 900_000, "of memory, and 16.0 GiB are free here: lower --n to 299593."),
        ("eval", 10**12, "--n must be from 2 to 1000000, not 1000000000000."),
        ("gen", 10**12, "--n must be from 1 to 1000000, not 1000000000000."),
    ]:
        assert run_cli(monkeypatch, command, "runs/none", "--n", str(n)) == 2
        assert words in capsys.readouterr().err
