import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import imletriton
from imletriton.commands.fit import fit
from imletriton.commands.reporter import Reporter
from imletriton.errors import Fault, InputError, Interrupted, Notice
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.trainer import Trainer

# Kills itself at the n-th file that a checkpoint brings to disk: in the middle of writing one.
DIE_IN_CHECKPOINT = """
import os, signal, sys
import imletriton.runs.checkpoint as checkpoint
from imletriton.cli import main
left, to_disk = int(sys.argv.pop(1)), checkpoint.to_disk
def dying(path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    to_disk(path)
checkpoint.to_disk = dying
main()
"""


def command(recipe_file: Path, run: Path, *more: str) -> list[str]:
    return ["fit", str(recipe_file), "--run-dir", str(run), "--device", "cpu", *more]


def cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imletriton", *arguments]


def everything(run: Path) -> dict[str, Any]:
    """What a run's end consists of: its last checkpoint's files, its last grid, and the log without speeds."""
    last = Run(run).checkpoints[-1]
    files: dict[str, Any] = {p.name: p.read_bytes() for p in last.iterdir()}
    files["grid"] = sorted((run / "samples").iterdir())[-1].read_bytes()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    measured = ("images_per_s", "pool_per_s", "memory_mb")
    files["log"] = [{k: v for k, v in record.items() if k not in measured} for record in log]
    return files


@pytest.fixture
def uninterrupted(recipe: Recipe, tmp_path: Path) -> dict[str, Any]:
    return everything(fit(recipe, tmp_path / "whole", "cpu").path)


def test_a_fit_leaves_a_run_as_designed(recipe: Recipe, tmp_path: Path) -> None:
    run = imletriton.fit(recipe, tmp_path / "run", "cpu")
    assert Recipe.load(run.recipe_file) == recipe
    assert [p.name for p in run.checkpoints] == ["000040", "000050", "000060"]
    assert [p.name for p in sorted(run.samples.iterdir())] == ["000030.png", "000060.png"]
    assert Image.open(run.samples / "000060.png").size == (1024, 1024)
    assert list(run.path.glob("events.out.tfevents.*"))
    log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert [record["step"] for record in log] == [10, 20, 30, 40, 50, 60]
    assert {"loss", "images_per_s", "memory_mb", "bad_steps", "pool_per_s"} <= log[-1].keys()
    assert [record["step"] for record in log if "refreshed" in record] == [10, 20, 40, 50]  # rounds at 0, 16, 32, 48
    assert log[-1]["loss"] < log[0]["loss"]
    assert Generator.from_pretrained(run.path).sample(2).shape == (2, 3, 16, 16)


def test_thirty_steps_killed_and_resumed_are_sixty(
    recipe: Recipe, recipe_file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL at random moments, then in the middle of two checkpoints; the end is the same to the bit."""
    run, rng, kills, died_in_checkpoint = tmp_path / "killed", random.Random(0), 0, 0
    while True:
        process = subprocess.Popen(
            cli(*command(recipe_file, run, *(["--resume"] if (run / "recipe.toml").exists() else []))),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        if kills < 2:
            for _ in range(rng.randint(2, 3)):
                process.stdout.readline()  # at work by then
            time.sleep(rng.random() * 0.3)
            process.kill()
            kills += 1
            process.communicate()
        elif kills < 4:
            process.kill()
            process.communicate()
            dying = [sys.executable, "-c", DIE_IN_CHECKPOINT, str(rng.randint(0, 6))]
            died = subprocess.run(
                [*dying, *command(recipe_file, run, "--resume")], stdout=subprocess.DEVNULL, check=False
            )
            assert died.returncode == -signal.SIGKILL or (run / "checkpoints" / "000060").exists()
            died_in_checkpoint += died.returncode == -signal.SIGKILL
            kills += 1
        else:
            process.communicate()
            assert process.returncode == 0
            break
    assert everything(run) == uninterrupted
    assert died_in_checkpoint >= 1


def test_a_resumed_run_continues_bit_for_bit(recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    half = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 30})})
    fit(half, tmp_path / "run", "cpu")
    fit(recipe, tmp_path / "run", "cpu", resume=True)
    assert everything(tmp_path / "run") == uninterrupted


def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    half = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 30})})
    run = fit(half, tmp_path / "run", "cpu")
    damaged = run.checkpoints[-1] / "trainer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(
        Notice, match=r"000030/trainer\.safetensors .* is kept as 000030\.damaged, and training goes on from 000020\."
    ):
        fit(recipe, run.path, "cpu", resume=True)
    assert everything(run.path) == uninterrupted
    assert (run.path / "checkpoints" / "000030.damaged" / damaged.name).exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again(recipe: Recipe, tmp_path: Path) -> None:
    run = fit(
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 10})}), tmp_path / "run", "cpu"
    )
    before = {path: path.is_file() and path.read_bytes() for path in run.path.rglob("*")}
    (run.checkpoints[0] / "trainer.safetensors").unlink()
    del before[run.checkpoints[0] / "trainer.safetensors"]
    with pytest.raises(InputError, match=r"run has no other checkpoint that is whole: train it anew\."):
        fit(recipe, run.path, "cpu", resume=True)
    assert {path: path.is_file() and path.read_bytes() for path in run.path.rglob("*")} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again_and_says_so(
    recipe: Recipe, tmp_path: Path
) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 1})})
    run = fit(short, tmp_path / "run", "cpu")
    shutil.rmtree(run.path / "checkpoints")
    with pytest.warns(Notice, match=r"run holds no checkpoint yet, so training begins again at step 0\."):
        fit(short, run.path, "cpu", resume=True)
    assert [p.name for p in run.checkpoints] == ["000001"]


@pytest.mark.parametrize("part", ["weights", "averages"])
def test_weights_that_are_not_finite_end_training_and_are_never_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    step = Trainer.train_step

    def ruined(trainer: Trainer) -> None:
        step(trainer)
        if trainer.step == 20:
            getattr(trainer, part)[0].data.fill_(torch.nan)

    monkeypatch.setattr(Trainer, "train_step", ruined)
    with pytest.raises(
        Fault,
        match=r"At step 20 weights were NaN or infinite, so they were not saved: lower .*good checkpoint: .*000010\.",
    ):
        fit(recipe, tmp_path / "run", "cpu")
    assert [p.name for p in Run(tmp_path / "run").checkpoints] == ["000010"]


class InterruptAt(Reporter):
    """Sends this process a signal at a step, or while the pool of the given round is drawn."""

    def __init__(self, step: int = -1, pool: int = -1) -> None:
        self.at, self.pools = step, pool

    def step(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def pool(self, done: int, total: int) -> None:
        self.pools -= 1
        if self.pools == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("moment", [{"step": 13}, {"step": 16}, {"pool": 1}, {"pool": 4}])
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path, moment: dict[str, int]
) -> None:
    with pytest.raises(Interrupted, match="saved") as stopped:
        fit(recipe, tmp_path / "run", "cpu", reporter=InterruptAt(**moment))
    assert Run(tmp_path / "run").checkpoints[-1].name == f"{stopped.value.step:06d}"
    fit(recipe, tmp_path / "run", "cpu", resume=True)
    assert everything(tmp_path / "run") == uninterrupted


def test_resuming_with_another_recipe_names_the_keys(recipe: Recipe, tmp_path: Path) -> None:
    short = recipe.train.model_copy(update={"iterations": 2})
    fit(recipe.model_copy(update={"train": short}), tmp_path / "run", "cpu")
    with pytest.raises(InputError, match=r"at step 2 already: set train\.iterations"):
        fit(
            recipe.model_copy(update={"train": short.model_copy(update={"iterations": 1})}),
            tmp_path / "run",
            "cpu",
            resume=True,
        )
    other = recipe.model_copy(update={"train": short.model_copy(update={"seed": 3, "ema": 0.5})})
    with pytest.raises(InputError, match=r"differs .* in train\.ema, train\.seed"):
        fit(other, tmp_path / "run", "cpu", resume=True)


def test_resuming_with_other_pictures_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    def pictures(colour: str) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, second in (("a.png", colour), ("b.png", "red")):
            Image.new("RGB", (16, 16), second).save(tmp_path / "data" / name)

    pictures("blue")
    data = recipe.data.model_copy(update={"source": str(tmp_path / "data")})
    recipe = recipe.model_copy(update={"data": data, "train": recipe.train.model_copy(update={"iterations": 2})})
    fit(recipe, tmp_path / "run", "cpu")
    pictures("green")
    with pytest.raises(InputError, match="other pictures"):
        fit(recipe, tmp_path / "run", "cpu", resume=True)


def test_a_run_is_not_overwritten(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        fit(recipe, device="cpu", resume=True)
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 1})})
    assert [fit(short, device="cpu").path.name for _ in range(2)] == ["tiny-001", "tiny-002"]
    with pytest.raises(InputError, match="holds a run already: add `resume=True`"):
        fit(short, "runs/tiny-001", "cpu")


def test_nothing_is_made_when_the_input_is_bad(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small_pool = recipe.model_copy(update={"selection": recipe.selection.model_copy(update={"pool": 99})})
    with pytest.raises(InputError, match=r"selection\.pool is 99, fewer than the 100 data points"):
        fit(small_pool, device="cpu")
    with pytest.raises(InputError, match="no CUDA GPU"):
        fit(recipe, device="cuda")
    with pytest.raises(InputError, match="not known"):
        fit(recipe, device="abacus")
    missing = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": "nowhere"})})
    with pytest.raises(InputError, match="'nowhere' is no folder"):
        fit(missing, device="cpu")
    assert not (tmp_path / "runs").exists()


def test_days_on_a_cpu_must_be_asked_for(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    long = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 10**9})})
    with pytest.raises(InputError, match=r"would take about \d+ days .*`device='cpu'`"):
        fit(long, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 5})})
    measured, asked = fit(short, tmp_path / "measured"), fit(short, tmp_path / "asked", "cpu")
    assert everything(measured.path) == everything(asked.path)


def test_divergence_names_the_last_good_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def poisoned(trainer: Trainer) -> None:
        if trainer.step >= 20:
            trainer.assigned.fill_(torch.nan)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(Fault, match=r"no finite gradients.* The last good checkpoint: .*run/checkpoints/000020"):
        fit(recipe, tmp_path / "run", "cpu")
    assert all(p.isfinite().all() for p in Generator.from_pretrained(tmp_path / "run").parameters())


def test_a_second_fit_finds_the_first_ones_memory_free(recipe: Recipe, tmp_path: Path) -> None:
    trainers: list[weakref.ref[Trainer]] = []

    class Noting(Reporter):
        def started(self, run: Run, trainer: Trainer, total: int) -> None:
            assert all(earlier() is None for earlier in trainers)
            trainers.append(weakref.ref(trainer))

    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 1})})
    for name in ("first", "second"):
        fit(short, tmp_path / name, "cpu", reporter=Noting())
    assert len(trainers) == 2


def test_points_in_the_plane_go_through_the_same_trainer(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    recipe = Recipe.load(recipes / "toy2d.toml", {"selection.epsilon": 0.05, "train.iterations": 300, "log.every": 100})
    run = fit(recipe, tmp_path / "run", "cpu")
    log = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]
    assert Image.open(run.samples / "000300.png").size == (720, 720)


def test_a_run_that_cannot_be_made_is_bad_input(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(InputError, match=r"cannot be written \(.*choose another `run_dir`"):
            fit(recipe, place, "cpu")


@pytest.mark.parametrize("culprit", ["imletriton.commands.fit.save_samples", "torch.utils.tensorboard.SummaryWriter"])
def test_a_full_disk_is_a_fault_that_says_how_to_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(culprit, full)
    with pytest.raises(Fault, match=r"No space left on device.*`resume=True`"):
        fit(recipe, tmp_path / "run", "cpu")


def test_bfloat16_trains_images_and_points(recipe: Recipe, tmp_path: Path) -> None:
    toy = Recipe.load(Path(__file__).parents[2] / "recipes" / "toy2d.toml")
    for each in (recipe, toy):
        train = each.train.model_copy(update={"precision": "bfloat16", "iterations": 6})
        run = fit(each.model_copy(update={"train": train}), tmp_path / each.name, "cpu")
        assert json.loads(run.log_file.read_text().splitlines()[-1])["loss"] > 0


def test_a_run_of_bad_steps_alone_is_logged_and_not_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step

    def poisoned(trainer: Trainer) -> None:
        trainer.assigned.fill_(torch.nan)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(Fault, match="last good checkpoint: none yet"):
        fit(recipe, tmp_path / "run", "cpu")
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["loss"] is None
