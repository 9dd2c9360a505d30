"""From a folder of pictures and a time to a recipe, and to a run that ends in time."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_cli
from PIL import Image

import imletriton
from imletriton.commands.fit import fit, plan
from imletriton.errors import InputError, Interrupted
from imletriton.plotting.grids import save_samples
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.system.distributed import ALONE
from imletriton.training import launch, planning, session
from imletriton.training.build import build
from imletriton.training.pace import Deadline, Pace
from imletriton.training.reporter import Reporter
from imletriton.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photos(count: int = 5, side: int = 100, name: str = "My photos!") -> Path:
    """Pictures of one colour each, not square, some grey and some with transparency."""
    folder = Path(name)
    folder.mkdir()
    for k in range(count):
        colour = (40 * k % 256, 100, 200)
        picture = Image.new("RGB", (side + 7 * k, side), colour).convert(("RGB", "L", "RGBA")[k % 3])
        picture.save(folder / f"{k:04d}.png")
    return folder


def at_pace(monkeypatch: pytest.MonkeyPatch, seconds: float, sample: float | None = None) -> None:
    """Let a step of 16 pictures at 64x64 and a width of 64 take so long, and less where the network is smaller."""

    def paced(trainer: Trainer) -> Pace:
        share = (trainer.points.shape[-1] / 64) ** 2 * (trainer.generator.width / 64) ** 1.5
        per_sample = seconds / 48 if sample is None else sample
        return Pace(share * seconds, share * per_sample * trainer.pool.size)

    monkeypatch.setattr(launch, "measure_pace", paced)


@pytest.mark.parametrize(
    ("seconds", "resolution", "width", "strategy"),
    [(0.1, 64, 64, "rejection"), (0.5, 64, 32, "rejection"), (2.0, 32, 32, "rejection"), (20.0, 32, 32, "vanilla")],
)
def test_time_decides_on_size_and_method(
    monkeypatch: pytest.MonkeyPatch, seconds: float, resolution: int, width: int, strategy: str
) -> None:
    at_pace(monkeypatch, seconds)
    found = plan(photos(41), device="cpu")
    recipe = found.recipe
    assert found.minutes == 30
    assert recipe.name == "My-photos"
    assert (recipe.data.resolution, recipe.generator.model_dump()["width"]) == (resolution, width)
    assert recipe.selection.strategy == strategy
    assert (recipe.distance.kind, recipe.distance.network) == ("bands", "efficientnet")
    assert recipe.distance.network_weight == (0.12 if resolution == 64 else 0.3)
    assert len(found.lines) == 5
    assert f"41 of My photos!, at {resolution}x{resolution} pixels" in found.lines[0]
    assert f"about {recipe.train.iterations} steps of 16" in found.lines[4]
    assert recipe.log.measure_every <= recipe.train.iterations / 5
    Path("recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load("recipe.toml") == recipe  # an ordinary one


@pytest.mark.parametrize("n", [2, 41, 400, 5000])
@pytest.mark.parametrize("minutes", [3, 30, 600])
def test_steps_and_pools_fill_the_time_that_is_left(n: int, minutes: int) -> None:
    batch, step, sample = min(16, n), 0.14, 0.14 / 48
    found, _ = planning.schedule(n, batch, step, sample, 60 * minutes)
    selection, steps = found["selection"], found["train"]["iterations"]
    m = int(int(selection["pool"].removesuffix("n")) * n * selection["share"])
    per_epoch = -(-n // batch)
    pools = max(1.0, steps / (selection["refresh"] * selection["share"] * per_epoch)) * m * sample
    seconds = steps * step + pools
    assert 0.75 * 60 * minutes < seconds < 60 * minutes
    assert pools < 0.4 * seconds
    assert m * sample < 0.1 * 60 * minutes  # so that the end can be met
    assert m >= n


def test_small_pictures_are_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    at_pace(monkeypatch, 0.01)
    assert plan(photos(side=32), device="cpu").recipe.data.resolution == 32
    found = plan("My photos!", resolution=48, device="cpu")
    assert found.recipe.data.resolution == 48
    assert "at 48x48 pixels, 5 of them enlarged" in found.lines[0]


def test_what_does_not_fit_into_memory_is_planned_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    at_pace(monkeypatch, 0.001)

    def refuse(recipe: Recipe, *arguments: object, **more: object) -> None:
        if recipe.generator.model_dump()["width"] > 32:
            raise InputError("too large")

    monkeypatch.setattr(launch, "check_memory", refuse)
    assert plan(photos(), device="cpu").recipe.generator.model_dump()["width"] == 32


@pytest.mark.parametrize(("weights", "kind"), [(True, "lpips"), (False, "bands")])
def test_a_card_gets_the_papers_network_and_lpips_where_its_weights_are(
    monkeypatch: pytest.MonkeyPatch, weights: bool, kind: str
) -> None:
    """Without a card here: what is measured is not the network itself."""

    def fetch(network: str) -> None:
        if not weights:
            raise InputError("no network")

    class Cuda:
        type = "cuda"

    pace = {"seconds": 0.0}

    def prepare(recipe: Recipe, device: object, **more: object) -> launch.Ready:
        pixels = recipe.distance.model_copy(update={"kind": "pixels"})
        points = torch.zeros(5, *recipe.data.shape, dtype=torch.uint8)
        trainer = build(recipe.model_copy(update={"distance": pixels}), points, torch.device("cpu"))
        return launch.Ready(trainer, None, Pace(pace["seconds"], 1.0))

    monkeypatch.setattr("imletriton.system.device.choose_device", lambda device: Cuda())
    monkeypatch.setattr(planning, "set_up", lambda device: None)
    monkeypatch.setattr(planning, "device_name", lambda device: "a card")
    monkeypatch.setattr(planning, "fetch_weights", fetch)
    monkeypatch.setattr(planning, "prepare", prepare)
    small, folder = {"generator.width": 8, "generator.latent_dim": 8}, photos(side=300)
    for pace["seconds"], side in ((0.05, 256), (0.5, 128)):
        found = plan(folder, overrides=small)
        assert found.minutes == 120
        recipe = found.recipe
        assert (recipe.data.resolution, recipe.distance.kind, recipe.distance.search) == (side, kind, "pixels")
        assert ("cannot be downloaded here" in found.lines[2]) == (not weights)
        assert recipe.train.iterations > 10_000


def test_keys_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    at_pace(monkeypatch, 0.1)
    changes = {"train.seed": 3, "data.mirror": True, "data.resolution": 16, "generator.width": 8, "name": "own"}
    recipe = plan(photos(), device="cpu", overrides=changes).recipe
    assert (recipe.name, recipe.train.seed, recipe.data.mirror, recipe.data.resolution) == ("own", 3, True, 16)
    assert recipe.train.batch_size == 10


BAD = [
    ([], "holds no images"),
    (["--minutes", "0"], "--minutes must be more than 0"),
    (["--minutes", "nan"], "--minutes must be more than 0"),
    (["--resolution", "100"], "--resolution: 100 pixels are not 4 to 7 pixels doubled some times: take 96."),
    (["--resolution", "-1"], "--resolution must be from 4 to 8192 pixels"),
    (["--set", "data.resolution=many"], "--resolution must be from 4 to 8192 pixels, not 'many'"),
    (["--set", "train.iterations=9"], "leave out train.iterations"),
    (["--set", "train.sed=9"], "train.sed is not a key"),
    (["--device", "abacus"], "--device 'abacus' is not known"),
    (["--run-dir", "taken"], "taken holds a run already"),
    (["--minutes", "0.0001"], "of 0.0001 leave no time to train here: give at least"),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_input_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    at_pace(monkeypatch, 0.1)
    folder = photos() if more else Path("empty")
    folder.mkdir(exist_ok=True)
    Path("taken").mkdir()
    Path("taken/recipe.toml").write_text("")
    assert run_cli(monkeypatch, "fit", str(folder), *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_flags_for_folders_are_refused_for_recipes(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in (["--plan"], ["--resolution", "64"]):
        assert run_cli(monkeypatch, "fit", str(recipe_file), *flag) == 2
        assert f"{flag[0]} is for a folder of pictures" in capsys.readouterr().err


def test_broken_pictures_and_one_alone_are_told_before_anything_is_measured() -> None:
    folder = photos()
    (folder / "x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 6 images in My photos! cannot be read: x\.png \(not a PNG"):
        plan(folder, device="cpu")
    with pytest.raises(InputError, match="one image only"):
        plan(photos(1, name="one"), device="cpu")


def test_the_plan_is_printed_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("imletriton.cli.process_age", lambda: 0.0)  # that of the process of all tests
    at_pace(monkeypatch, 0.1)
    photos()
    small = ["--resolution", "16", "--set", "generator.width=8", "--device", "cpu", "--minutes", "30"]
    assert run_cli(monkeypatch, "fit", "My photos!", *small, "--plan") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[-5:]] == ["pictures", "network", "distance", "selection", "training"]
    assert all(len(line) <= 100 for line in shown)
    assert not Path("runs").exists()


class Clock(Reporter):
    """A clock for what decides on the end: each step takes a second, each chunk of a pool a time of its own."""

    def __init__(self) -> None:
        self.now, self.chunk, self.stop_at = 0.0, 0.5, 0

    def step(self, step: int) -> None:
        self.now += 1
        if step == self.stop_at:
            signal.raise_signal(signal.SIGINT)

    def pool(self, done: int, total: int) -> None:
        self.now += self.chunk

    def perf_counter(self) -> float:
        self.now += 1e-4  # so that nothing takes no time at all
        return self.now

    def save_samples(self, *arguments: Any) -> None:
        self.now += 2
        save_samples(*arguments)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("commands.fit", "training.pace", "training.planning", "training.trainer"):
        monkeypatch.setattr(f"imletriton.{module}.time", clock)
    monkeypatch.setattr(session, "save_samples", clock.save_samples)
    return clock


def test_a_run_ends_in_time_and_its_recipe_has_the_steps_that_were_done(
    recipe: Recipe, tmp_path: Path, clock: Clock
) -> None:
    run = fit(recipe, tmp_path / "run", "cpu", reporter=clock, minutes=1.5)
    assert 0.92 * 90 < clock.now < 90
    newest = run.checkpoints[-1]
    steps = Recipe.load(run.recipe_file).train.iterations
    assert steps == int(newest.name) == run.log()[-1].step
    assert steps > 60
    # It is done, and can be given more time.
    fit(None, run.path, "cpu", resume=True)
    assert run.checkpoints[-1] == newest
    clock.now = 0.0
    fit(None, run.path, "cpu", resume=True, reporter=clock, minutes=0.5)
    assert 0.9 * 30 < clock.now < 30
    assert int(run.checkpoints[-1].name) > steps
    # As many steps give the same, whatever has ended them.
    again = fit(run.recipe_file, tmp_path / "again", "cpu")
    first, second = ((path.checkpoints[-1] / "model.safetensors").read_bytes() for path in (run, again))
    assert first == second


def test_no_pool_is_begun_that_would_end_too_late(recipe_file: Path, tmp_path: Path, clock: Clock) -> None:
    recipe = Recipe.load(recipe_file, {"train.batch_size": 50, "selection.refresh": 5})
    clock.chunk = 7.0  # of which there are one or more in each pool, after ten steps each
    fit(recipe, tmp_path / "run", "cpu", reporter=clock, minutes=1.6)
    assert 0.7 * 96 < clock.now < 96


def test_a_run_with_an_end_that_was_stopped_goes_on_to_the_steps_that_were_foreseen(
    recipe: Recipe, tmp_path: Path, clock: Clock
) -> None:
    clock.stop_at = 75
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run", "cpu", reporter=clock, minutes=2)
    run = Run(tmp_path / "run")
    assert run.checkpoints[-1].name == "000075"
    foreseen = Recipe.load(run.recipe_file).train.iterations
    assert 85 < foreseen < 125
    fit(None, run.path, "cpu", resume=True)
    assert int(run.checkpoints[-1].name) == foreseen


def test_a_folder_is_trained_on_with_the_trainer_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(planning, "SIZES", {"cpu": [planning.Size(16, 8, 1e-3, 0)]})
    monkeypatch.setattr(launch, "measure_pace", lambda trainer: Pace(1.0, 1.0))
    built, build = list[Trainer](), launch.build
    monkeypatch.setattr(launch, "build", lambda *given: built.append(build(*given)) or built[-1])
    run = imletriton.fit(photos(), minutes=1.5, device="cpu", reporter=clock, overrides={"train.calibrate": False})
    assert len(built) == 1
    assert built[0].step == run.log()[-1].step > 50
    assert isinstance(run, Run)
    assert run.path.name == "My-photos-001"
    assert run.checkpoints


def test_a_deadline_tells_how_many_steps_there_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Steps:
        step, steps_per_epoch, seconds_per_pool, group, device = 0, 10, 0.0, ALONE, torch.device("cpu")

    trainer, deadline = Steps(), Deadline(100)
    ends = deadline.ends
    assert 95 < ends < 100
    for trainer.step in range(1, 51):
        now[0] += 1
        assert not deadline.reached(trainer, True)  # type: ignore[arg-type]
        expected = 70 if now[0] < 11 else pytest.approx(ends, abs=1)
        assert deadline.total(trainer, 70) == expected  # type: ignore[arg-type]
    with deadline.writing():
        now[0] += 10
    assert deadline.slowest_write == 10
    now[0] = ends - 9
    assert deadline.reached(trainer, True)  # type: ignore[arg-type]
