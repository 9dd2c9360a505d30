import copy
import json
import os
import shutil
import signal
import threading
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import processes
import pytest
import torch
from conftest import TINY
from PIL import Image
from reporters import At, interrupt

import imletriton
from imletriton.commands.fit import fit
from imletriton.data import load_points
from imletriton.errors import Fault, InputError, Interrupted, Notice
from imletriton.generator import Generator
from imletriton.recipe import Recipe
from imletriton.runs import checkpoint
from imletriton.runs.run import Run
from imletriton.training import launch
from imletriton.training.build import build
from imletriton.training.pace import Pace, in_words, measure_pace, pools_to_come
from imletriton.training.reporter import Reporter
from imletriton.training.state import state_of
from imletriton.training.trainer import StepDone, Trainer


def everything(run: Path) -> dict[str, Any]:
    """What a run's end consists of: its last checkpoint's files, its last grid, and the log without speeds."""
    last = Run(run).checkpoints[-1]
    files: dict[str, Any] = {p.name: p.read_bytes() for p in last.iterdir()}
    files["grid"] = sorted((run / "samples").iterdir())[-1].read_bytes()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    measured = ("images_per_s", "pool_per_s", "memory_mb", "seconds")
    files["log"] = [{k: v for k, v in record.items() if k not in measured} for record in log]
    return files


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(TINY)
    return everything(fit(Recipe.load(folder / "tiny.toml"), folder / "run", "cpu").path)


def with_steps(recipe: Recipe, iterations: int, **train: object) -> Recipe:
    changed = recipe.train.model_copy(update={"iterations": iterations} | train)
    return recipe.model_copy(update={"train": changed})


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


def die_in_checkpoint(recipe: Recipe, run: Path, files: int, resume: bool) -> None:
    """Train until so many files of checkpoints have been brought to disk: in the middle of writing a checkpoint."""
    to_disk, left = checkpoint.to_disk, iter(range(files))

    def dying(path: Path) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        to_disk(path)

    with mock.patch.object(checkpoint, "to_disk", dying):
        fit(recipe, run, "cpu", resume=resume)


def die_at_a_step(run: Path, step: int) -> None:
    fit(None, run, "cpu", resume=True, reporter=At(step, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_sixty_steps_killed_and_resumed_are_sixty(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """Killed in the middle of the first checkpoint, of a later one, and between two: the end is the same to the bit."""
    run = tmp_path / "killed"
    for work, *arguments in (
        (die_in_checkpoint, recipe, run, 3, False),
        (die_in_checkpoint, recipe, run, 11, True),
        (die_at_a_step, run, 37),
    ):
        process = processes.start(tmp_path / "told", work, *arguments)
        assert processes.exit_code(process) == -signal.SIGKILL
    assert [path.name for path in Run(run).checkpoints][-1] == "000030"
    fit(None, run, "cpu", resume=True)
    assert everything(run) == uninterrupted


def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    run = fit(with_steps(recipe, 30), tmp_path / "run", "cpu")
    damaged = run.checkpoints[-1] / "trainer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(
        Notice, match=r"000030/trainer\.safetensors .* is kept as 000030\.damaged, and training goes on from 000020\."
    ):
        fit(recipe, run.path, "cpu", resume=True)
    assert everything(run.path) == uninterrupted
    assert (run.path / "checkpoints" / "000030.damaged" / damaged.name).exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again(recipe: Recipe, tmp_path: Path) -> None:
    run = fit(with_steps(recipe, 10), tmp_path / "run", "cpu")
    before = {path: path.is_file() and path.read_bytes() for path in run.path.rglob("*")}
    (run.checkpoints[0] / "trainer.safetensors").unlink()
    del before[run.checkpoints[0] / "trainer.safetensors"]
    with pytest.raises(InputError, match=r"run has no other checkpoint that is whole: train it anew\."):
        fit(recipe, run.path, "cpu", resume=True)
    assert {path: path.is_file() and path.read_bytes() for path in run.path.rglob("*")} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_is_begun_again_and_says_so(
    recipe: Recipe, tmp_path: Path
) -> None:
    short = with_steps(recipe, 1)
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


class AtPool(Reporter):
    """Sends this process a signal while a chunk of a pool is drawn."""

    def __init__(self, chunk: int) -> None:
        self.left = chunk

    def pool(self, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "moment", [interrupt(13), interrupt(16), AtPool(1), AtPool(4)], ids=["step 13", "step 16", "pool 1", "pool 4"]
)
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path, moment: Reporter
) -> None:
    with pytest.raises(Interrupted, match="saved") as stopped:
        fit(recipe, tmp_path / "run", "cpu", reporter=moment)
    assert Run(tmp_path / "run").checkpoints[-1].name == f"{stopped.value.step:06d}"
    fit(recipe, tmp_path / "run", "cpu", resume=True)
    assert everything(tmp_path / "run") == uninterrupted


def test_the_end_of_a_terminal_saves_too_but_not_under_nohup(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 13 and saved"):
        fit(recipe, tmp_path / "run", "cpu", reporter=interrupt(13, signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(recipe, tmp_path / "run", "cpu", resume=True, reporter=interrupt(17, signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Run(tmp_path / "run").checkpoints[-1].name == "000060"


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_removed_while_it_trains_is_told_and_not_made_again(
    recipe: Recipe, tmp_path: Path, interrupted: bool
) -> None:
    def remove() -> None:
        shutil.rmtree(tmp_path / "run")
        if interrupted:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Fault, match=r"run was moved or removed during training, .*`resume=True`"):
        fit(recipe, tmp_path / "run", "cpu", reporter=At(13, remove))
    assert not (tmp_path / "run").exists()


def test_training_goes_on_when_its_checkpoints_are_removed(
    recipe: Recipe, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    fit(recipe, run.path, "cpu", reporter=At(33, lambda: shutil.rmtree(run.path / "checkpoints")))
    assert [p.name for p in run.checkpoints] == ["000040", "000050", "000060"]
    assert everything(run.path) == uninterrupted


def test_resuming_with_another_recipe_names_the_keys(recipe: Recipe, tmp_path: Path) -> None:
    fit(with_steps(recipe, 2), tmp_path / "run", "cpu")
    with pytest.raises(InputError, match=r"at step 2 already: set train\.iterations"):
        fit(with_steps(recipe, 1), tmp_path / "run", "cpu", resume=True)
    other = with_steps(recipe, 2, seed=3, ema=0.5)
    with pytest.raises(InputError, match=r"differs .* in train\.ema, train\.seed"):
        fit(other, tmp_path / "run", "cpu", resume=True)


def test_resuming_with_other_pictures_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    def pictures(colour: str) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, second in (("a.png", colour), ("b.png", "red")):
            Image.new("RGB", (16, 16), second).save(tmp_path / "data" / name)

    pictures("blue")
    data = recipe.data.model_copy(update={"source": str(tmp_path / "data")})
    recipe = with_steps(recipe, 2).model_copy(update={"data": data})
    fit(recipe, tmp_path / "run", "cpu")
    pictures("green")
    with pytest.raises(InputError, match="other pictures"):
        fit(recipe, tmp_path / "run", "cpu", resume=True)


def test_a_run_is_not_overwritten(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        fit(recipe, device="cpu", resume=True)
    short = with_steps(recipe, 1)
    assert [fit(short, device="cpu").path.name for _ in range(2)] == ["tiny-001", "tiny-002"]
    with pytest.raises(InputError, match="holds a run already: add `resume=True`"):
        fit(short, "runs/tiny-001", "cpu")


def test_resume_alone_goes_on_with_the_newest_run_by_its_own_recipe(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    recipe_file.rename("recipes/tiny.toml")
    with pytest.raises(InputError, match="There is no run in runs/"):
        fit(resume=True)
    with pytest.raises(InputError, match="fit needs a folder of pictures"):
        fit(device="cpu")
    for source in ("recipes/tiny.toml", Path("recipes/tiny.toml")):
        with pytest.raises(Interrupted) as stopped:
            imletriton.fit(source, device="cpu", reporter=interrupt(3))
    assert stopped.value.run == Path("runs/tiny-002")
    shutil.rmtree("recipes")
    shutil.rmtree("runs/tiny-002/checkpoints")  # as if it had been killed before the first one
    with pytest.raises(Interrupted) as stopped:
        imletriton.fit(resume=True, device="cpu", reporter=interrupt(5))
    assert (stopped.value.run, stopped.value.step) == (Path("runs/tiny-002"), 5)
    for step, again in ((7, {"recipe": "runs/tiny-001"}), (9, {"run_dir": "runs/tiny-001"})):
        with pytest.raises(Interrupted) as stopped:
            imletriton.fit(**again, resume=True, device="cpu", reporter=interrupt(step))
        assert (stopped.value.run, stopped.value.step) == (Path("runs/tiny-001"), step)
    with pytest.raises(Interrupted) as stopped:  # it was saved last
        imletriton.fit(resume=True, device="cpu", reporter=interrupt(11))
    assert (stopped.value.run, stopped.value.device) == (Path("runs/tiny-001"), None)


class Telling(Reporter):
    """Keeps what is told, in order; steps by their numbers."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, run: Run, trainer: Trainer, total: int) -> None:
        self.told.append("started")

    def note(self, text: str) -> None:
        self.told.append(text)

    def pool(self, done: int, total: int) -> None:
        self.told.append("pool")

    def step(self, step: int) -> None:
        self.told.append(str(step))


def test_phases_are_named_and_the_time_to_come_is_told_before_the_first_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "measure_pace", lambda trainer: Pace(3.0, 60.0))
    reporter = Telling()
    fit(with_steps(recipe, 40), tmp_path / "run", "cpu", reporter=reporter)
    assert reporter.told[:8] == [
        "Training tiny on faces: loading PyTorch.",
        "Reading the data points of faces.",
        "Building the generator and the distance.",
        "started",
        "About 5 minutes left; the first pool takes about 60 seconds.",  # 40 steps, and 3 pools in 10 epochs
        "Drawing a pool takes longer than the 16 steps that use it. In a new run, selection.share=0.5 would draw pools "
        "of 1/2 the size 2 times as often, so that training starts sooner.",
        "pool",
        "1",
    ]
    resumed = Telling()
    fit(recipe, tmp_path / "run", "cpu", resume=True, reporter=resumed)
    assert resumed.told[4:6] == ["About 2 minutes left.", "41"]  # 20 steps, and the pool of epoch 12


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 48.0),
        ({"selection.share": 0.5}, 60.0),
        ({"selection.pool": "1n"}, 60.0),
        ({"selection.strategy": "adaptive"}, 60.0),
    ],
)
def test_smaller_rounds_are_advised_only_where_they_help(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], seconds: float
) -> None:
    monkeypatch.setattr(launch, "measure_pace", lambda trainer: Pace(3.0, seconds))
    reporter = Telling()
    fit(Recipe.load(recipe_file, {"train.iterations": 20} | changes), tmp_path / "run", "cpu", reporter=reporter)
    assert not any("share" in line for line in reporter.told)


@pytest.mark.parametrize("strategy", ["vanilla", "adaptive-rejection"])
def test_the_pace_is_measured_without_a_trace(recipe_file: Path, strategy: str) -> None:
    recipe = Recipe.load(recipe_file, {"selection.strategy": strategy})
    trainer = build(recipe, load_points("faces", 16), torch.device("cpu"))
    for event in trainer.loop():
        if event == StepDone(6):
            break
    (tensors, state), ema = copy.deepcopy((state_of(trainer), trainer.ema.state_dict()))
    pace, pools = measure_pace(trainer), pools_to_come(trainer)
    assert pace.step > 0
    assert pace.pool > 0
    found, after = state_of(trainer)
    for was, now in ((tensors, found), (ema, trainer.ema.state_dict())):
        torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True)
    assert after == state
    drawn = trainer.draws
    for _ in trainer.loop():
        pass
    assert trainer.draws - drawn <= pools <= 4
    assert strategy != "vanilla" or trainer.draws - drawn == pools


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (100, "100 seconds"),
        (150, "2 minutes"),
        (7000, "117 minutes"),
        (1e4, "3 hours"),
        (1e6, "12 days"),
    ],
)
def test_durations_are_told_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == f"about {words}"


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
    with pytest.raises(InputError, match="'nowhere' is not a folder"):
        fit(missing, device="cpu")
    assert not (tmp_path / "runs").exists()


def test_days_on_a_cpu_must_be_asked_for(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"would take about \d+ days .*`device='cpu'`"):
        fit(with_steps(recipe, 10**9), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    short = with_steps(recipe, 5)
    measured, asked = fit(short, tmp_path / "measured"), fit(short, tmp_path / "asked", "cpu")
    assert everything(measured.path) == everything(asked.path)


def test_a_second_fit_finds_the_first_ones_memory_free(recipe: Recipe, tmp_path: Path) -> None:
    trainers: list[weakref.ref[Trainer]] = []

    class Noting(Reporter):
        def started(self, run: Run, trainer: Trainer, total: int) -> None:
            assert all(earlier() is None for earlier in trainers)
            trainers.append(weakref.ref(trainer))

    short = with_steps(recipe, 1)
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


@pytest.mark.parametrize(
    "culprit",
    [
        "imletriton.training.session.save_samples",
        "torch.utils.tensorboard.SummaryWriter",
        "tensorboard.summary.writer.record_writer.RecordWriter.write",  # in a thread of TensorBoard's
    ],
)
def test_a_full_disk_is_a_fault_that_says_how_to_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], culprit: str
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(culprit, full)
    hook = threading.excepthook
    with pytest.raises(Fault, match=r"No space left on device.*`resume=True`"):
        fit(recipe, tmp_path / "run", "cpu")
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_bfloat16_trains_images_and_points(recipe: Recipe, tmp_path: Path) -> None:
    toy = Recipe.load(Path(__file__).parents[2] / "recipes" / "toy2d.toml")
    for each in (recipe, toy):
        run = fit(with_steps(each, 6, precision="bfloat16"), tmp_path / each.name, "cpu")
        assert json.loads(run.log_file.read_text().splitlines()[-1])["loss"] > 0


@pytest.mark.parametrize(("after", "good"), [(20, ".*run/checkpoints/000020"), (0, "none yet")])
def test_divergence_names_the_last_good_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, good: str
) -> None:
    step = Trainer.train_step

    def poisoned(trainer: Trainer) -> None:
        if trainer.step >= after:
            trainer.assigned.fill_(torch.nan)
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(Fault, match=rf"no finite gradients.* The last good checkpoint: {good}"):
        fit(recipe, tmp_path / "run", "cpu")
    if after:
        assert all(p.isfinite().all() for p in Generator.from_pretrained(tmp_path / "run").parameters())
    else:
        assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["loss"] is None
