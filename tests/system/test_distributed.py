"""Several processes, by gloo on the CPU."""

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

import processes
import pytest
import torch
import torch.distributed as dist
from reporters import interrupt
from safetensors.torch import load_file

from imletriton.commands.fit import fit
from imletriton.data import content_hash, load_points
from imletriton.errors import InputError, Interrupted
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.search import Prepared
from imletriton.system.distributed import Group, joined
from imletriton.training import launch
from imletriton.training.build import build
from imletriton.training.pool import PoolNeighbours, SamplePool

CPU = torch.device("cpu")


def start(count: int, work: Callable[..., object], folder: Path, *arguments: object) -> list[ForkServerProcess]:
    """Processes as torchrun would start them; what each returns or raises lies in folder/RANK afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    return [
        processes.start(folder / str(rank), work, *arguments, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in range(count)
    ]


def together(count: int, work: Callable[..., object], folder: Path, *arguments: object) -> list[str]:
    """What each of several processes returns or raises."""
    for process in start(count, work, folder, *arguments):
        processes.exit_code(process)
    return [(folder / str(rank)).read_text() for rank in range(count)]


def learnt(run: Run) -> torch.Tensor:
    """What training has changed in the weights."""
    recipe = Recipe.load(run.recipe_file)
    before = build(recipe, load_points("faces", 16), CPU).generator.state_dict()
    after = load_file(run.checkpoints[-1] / "trainer.safetensors")
    return torch.cat([(after[f"generator.{name}"] - value).flatten() for name, value in before.items()])


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 3), (7, 1), (0, 2)])
def test_shares_cover_all_rows_once(count: int, size: int) -> None:
    rows = [row for rank in range(size) for row in range(count)[Group(rank, size).share(count)]]
    assert rows == list(range(count))


def search() -> list[PoolNeighbours]:
    """Of a pool that each process has its share of, with ties within and across shares and samples not finite."""
    whole = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    whole[[4, 8]], whole[9], whole[2] = whole[1].clone(), whole[6].clone(), torch.nan
    with joined(CPU) as group:
        pool = SamplePool.__new__(SamplePool)
        pool.points = Prepared(torch.cat([whole[[1, 6, 5]], torch.zeros(1, 4)]))
        pool.size, pool.group, pool.features = 10, group, torch.full_like(whole, 7.0)
        pool.features[group.share(10)] = whole[group.share(10)]
        assert torch.equal(group.complete(pool.features).nan_to_num(), whole.nan_to_num())
        assert not group.any(False, CPU)
        assert group.any(group.rank == group.size - 1, CPU)
        assert group.text("café" if group.writes else "", CPU) == "café"
        pool._prepare()
        return [pool.nearest(None, radius) for radius in (None, 0.1, 100.0)]


def test_a_pool_searched_in_shares_gives_the_least_distance_and_of_ties_the_lowest_index(tmp_path: Path) -> None:
    expected = search()
    assert expected[0].index[:3].tolist() == [1, 6, 5]
    assert [int(found.accepted) for found in expected] == [9, 3, 0]
    assert expected[2].index.tolist() == [-1] * 4
    assert together(3, search, tmp_path) == [str(expected)] * 3


def left_behind() -> str:
    with joined(CPU) as group:
        group.wait(CPU)
        assert "gloo_tcp_loop" in threads()
        importlib.import_module("torch._dynamo")  # as the optimizer does; its modules must not hold the group
    dist.destroy_process_group()
    return " ".join(name for name in threads() if name.startswith(("gloo", "pt_gloo", "pt_tcpstore")))


def threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def test_no_thread_of_a_group_outlives_it(tmp_path: Path) -> None:
    """Python's end would abort the process where such a thread still holds a tensor."""
    assert together(2, left_behind, tmp_path) == ["", ""]


def calibrated(recipe: Recipe, folder: Path) -> Run:
    """By few samples, which are enough to compare."""
    with mock.patch("imletriton.training.calibration.SAMPLES", 64):
        return fit(recipe, folder, "cpu")


def test_three_processes_train_measure_and_calibrate_as_one_does(recipe_file: Path, tmp_path: Path) -> None:
    """In float32, up to the order of sums; they share a batch of 32 unevenly."""
    changes = {"train.precision": "float32", "train.iterations": 12, "selection.strategy": "adaptive-rejection"}
    changes |= {"data.holdout": 0.1, "log.measure_every": 3, "train.calibrate": True}
    changed = Recipe.load(recipe_file, changes)
    one = calibrated(changed, tmp_path / "alone")
    run = Run(tmp_path / "together")
    assert together(3, calibrated, tmp_path, changed, run.path) == [str(run)] * 3
    assert (learnt(run) - learnt(one)).norm() < 0.02 * learnt(one).norm()
    for line, expected in zip(run.log(), one.log(), strict=True):
        assert (line.step, line.accepted, line.spread) == (expected.step, expected.accepted, expected.spread)
        found, numbers = line.to_json(), expected.to_json()
        for key in numbers.keys() & {"loss", "samples_to_data", "held_out_to_samples"}:
            assert found[key] == pytest.approx(numbers[key], rel=1e-4)
    assert sum(line.spread is not None for line in run.log()) == len(run.checkpoints) == len(one.checkpoints)


def test_three_processes_end_together_when_nothing_improves(recipe_file: Path, tmp_path: Path) -> None:
    changes = {"log.measure_every": 3, "train.patience": 2, "train.learning_rate": 1e-9}
    run, recipe = Run(tmp_path / "run"), Recipe.load(recipe_file, changes)
    assert together(3, fit, tmp_path, recipe, run.path, "cpu") == [str(run)] * 3
    assert int(run.checkpoints[-1].name) < 60


class Ticking:
    """A clock that goes on by a time of its own whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


def in_a_time(recipe: Recipe, folder: Path) -> Run:
    with mock.patch("imletriton.training.pace.time", Ticking(0.05 * (1 + int(os.environ["RANK"])))):
        return fit(recipe, folder, "cpu", minutes=0.1)


def test_three_processes_end_together_when_the_time_of_the_first_is_over(recipe_file: Path, tmp_path: Path) -> None:
    run, recipe = Run(tmp_path / "run"), Recipe.load(recipe_file, {"train.precision": "float32"})
    assert together(3, in_a_time, tmp_path, recipe, run.path) == [str(run)] * 3
    assert Recipe.load(run.recipe_file).train.iterations == int(run.checkpoints[-1].name)


def train_alike(recipe: Recipe) -> str:
    with joined(CPU) as group:
        tensors = [torch.full((2, 3), group.rank + 1.0).T, torch.arange(2.0)]
        group.add(tensors)
        assert torch.equal(tensors[0], torch.full((3, 2), group.size * (group.size + 1) / 2))
        assert torch.equal(tensors[1], group.size * torch.arange(2.0))
        trainer = build(recipe, load_points("faces", 16), CPU, group)
        for _ in trainer.loop():
            pass
        return content_hash(torch.cat([weight.detach().flatten() for weight in (*trainer.weights, *trainer.averages)]))


def test_processes_that_train_together_keep_the_same_bits(recipe_file: Path, tmp_path: Path) -> None:
    changes = {"train.precision": "bfloat16", "train.iterations": 9}
    assert len(set(together(3, train_alike, tmp_path, Recipe.load(recipe_file, changes)))) == 1


def test_when_one_process_is_killed_the_others_say_so_and_the_run_resumes(recipe_file: Path, tmp_path: Path) -> None:
    """The one that writes."""
    run, endless = Run(tmp_path / "run"), Recipe.load(recipe_file, {"train.iterations": 10**6})
    started = start(3, fit, tmp_path, endless, run.path, "cpu")
    wait_for(run.path / "checkpoints" / "000010")
    os.kill(started[0].pid or 0, signal.SIGKILL)
    assert [processes.exit_code(process) for process in started] == [-signal.SIGKILL, 0, 0]
    for rank in (1, 2):
        assert (tmp_path / str(rank)).read_text().startswith("fault: Another process of this run has ended")
    step = int(run.checkpoints[-1].name)
    fit(Recipe.load(recipe_file, {"train.iterations": step + 10}), run.path, "cpu", resume=True)
    assert run.log()[-1].step == step + 10


@pytest.mark.slow
def test_torchrun_starts_processes_that_stop_together_and_save(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "imletriton"]
    program += ["fit", str(recipe_file), "--run-dir", str(run), "--device", "cpu"]
    program += ["--set", "train.iterations=100000", "--set", "log.checkpoint_every=100000"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(run / "log.jsonl")
        process.send_signal(signal.SIGINT)
        shown, told = process.communicate(timeout=60)
    assert shown.count("a new run") == 1
    assert "was stopped at step" in told
    assert "torchrun --nproc-per-node=2 -m imletriton fit" in told
    assert len(Run(run).checkpoints) == 1


def test_more_processes_than_images_a_batch_are_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "joined", lambda device: contextlib.nullcontext(Group(0, 33)))
    with pytest.raises(InputError, match="33 processes cannot share a batch of 32: start 32 at most"):
        fit(recipe, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def workers(agent: subprocess.Popen[str]) -> list[int]:
    """The processes that an agent of torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_machines_train_together_and_go_on_by_themselves_after_losing_a_process(
    recipe_file: Path, tmp_path: Path
) -> None:
    """Two agents of torchrun on the loopback stand for them. The process of the second one is killed."""
    other = Run(tmp_path / "runs" / "tiny-001")  # a run of the same name that is not meant
    fit(Recipe.load(recipe_file, {"train.iterations": 1}), other.path, "cpu")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1"]
    program += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=our-job"]
    program += ["--local-addr=127.0.0.1", "-m", "imletriton", "fit", str(recipe_file), "--device", "cpu"]
    program += ["--set", "train.iterations=300", "--set", "log.every=100"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    agents = [subprocess.Popen(program, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    try:
        run = Run(tmp_path / "runs" / "tiny-002")
        wait_for(run.path / "checkpoints" / "000020")
        os.kill(workers(agents[1])[0], signal.SIGKILL)
        told = [agent.communicate(timeout=240) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
    assert [agent.returncode for agent in agents] == [0, 0], told
    shown = "".join(out for out, _ in told)
    first, second = re.findall(r"runs/tiny-002: (a new run|on from step \d+), 300 steps", shown)
    assert first == "a new run"
    assert int(second.split()[-1]) >= 20
    assert shown.count("Done. runs/tiny-002 holds the trained generator.") == 1
    assert [record.step for record in run.log()] == [100, 200, 300]
    assert [path.name for path in other.checkpoints] == ["000001"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("run_dir", [None, "runs/ours"])
def test_a_job_of_torchrun_goes_on_with_the_run_that_it_has_begun(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: str | None
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(job: str, iterations: int, seed: int = 0) -> tuple[str, int]:
        """The run's folder and its last step."""
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        changed = recipe.train.model_copy(update={"iterations": iterations, "seed": seed})
        reporter = interrupt() if iterations == 60 else None
        with contextlib.suppress(Interrupted):
            fit(recipe.model_copy(update={"train": changed}), run_dir, "cpu", reporter=reporter)
        newest = max(Path("runs").glob("*/recipe.toml"), key=lambda path: path.stat().st_mtime_ns).parent
        return newest.name, int(Run(newest).checkpoints[-1].name)

    own = "ours" if run_dir else "tiny-001"
    assert train("a", 60) == (own, 1)
    assert train("a", 60) == (own, 2)  # without being told to resume
    if run_dir:
        with pytest.raises(InputError, match="holds a run already"):
            train("b", 60)
        with pytest.raises(InputError, match="holds a run already"):
            train("a", 60, seed=1)
    else:
        assert train("b", 60) == ("tiny-002", 1)
        assert train("a", 60, seed=1) == ("tiny-003", 1)
        assert train("none", 60) == ("tiny-004", 1)  # that is every job without a name: this process stands for it
        assert train("none", 60) == ("tiny-004", 2)
        assert train("none", 2) == ("tiny-005", 2)  # the one before is done
