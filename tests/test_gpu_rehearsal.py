"""`make gpu` without a GPU: every item runs with tiny shapes, and whatever fails, dies or hangs costs itself only."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import runner, summary
from benchmarks.gpu.items import Options, Stage, row
from benchmarks.gpu.runner import run_stage

ROOT = Path(__file__).parents[1]
ABOUT = {"device": "Some Card", "date": "2026-01-01", "commit": "abc"}


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_INTERPRET"):  # which `main` sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    return gpu.main()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_stage_is_rehearsed(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_stage", partial(run_stage, clock=lambda: 0.0))  # a busy machine may take its time
    status = call(monkeypatch, "--stage", stage, "--device", "cpu", "--tiny", "--out", tmp_path)
    output = capsys.readouterr().out
    assert status == 0, output
    [file] = tmp_path.glob(f"*-gpu-{stage}-rehearsal.json")
    found = json.loads(file.read_text())
    assert found.keys() >= {"device", "date", "commit", "versions", "cuda", "stage", "title", "limit_s", "seconds"}
    for item in found["items"]:
        assert item["status"] == "ok" or (item["status"], item["why"]) == ("skipped", "needs CUDA"), item
        for line in item.get("result", {}).get("rows", []):
            assert line.keys() == {"what", "measured", "unit", "predicted"}
            assert isinstance(line["measured"], int | float)
            assert line["what"] in output
    assert len(found["items"]) >= 3
    assert file.with_suffix(".txt").read_text() in output
    assert call(monkeypatch, "--summary", tmp_path) == 0
    assert f"Stage {stage}, {found['title']}" in capsys.readouterr().out


FAULTY = """
    import os, signal, time
    from benchmarks.gpu.items import Item, row

    def good(bench):
        return {"rows": [row("speed", 3.0, "us", (1.0, 2.0))]}

    def fails(bench):
        raise ValueError("not today")

    def lacks(bench):
        bench.need("os", "no_such_module")

    def dies(bench):
        bench.note({"parts": {"first": 1}})
        os.kill(os.getpid(), signal.SIGSEGV)

    def dies_once(bench):
        if not bench.before:
            bench.note({"tried": 1})
            os._exit(7)
        return {"before": bench.before}

    def hangs(bench):
        with open(os.environ["HANGS"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(1000)

    def waves(options):
        items = [Item("good", good, 30), Item("fails", fails, 30), Item("lacks", lacks, 30), Item("dies", dies, 30)]
        items += [Item("dies once", dies_once, 30, restarts=1), Item("hangs", hangs, 30), Item("last", good, 30)]
        if options.tests:
            from benchmarks.gpu.correctness import tests_of
            return [[items, [Item("tests", tests_of(0, 1, "not gpu"), 600, restarts=1)]]]
        return [[[Item("good", good, 900), Item("hangs", hangs, 900), Item("last", good, 30)]]]
"""
TESTS = """
    import os
    import pytest

    def test_good():
        pass

    def test_bad():
        assert 1 == 2, "one is not two"

    def test_that_dies():
        os._exit(1)

    def test_that_is_skipped():
        pytest.skip("no reason")

    def test_last():
        pass
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    (tmp_path / "faulty.py").write_text(textwrap.dedent(FAULTY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("HANGS", str(tmp_path / "hangs"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    return Stage(9, "faulty", 800, "faulty")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Clock:
    """Stands still, except while a process hangs: then every look finds it `seconds` later."""

    def __init__(self, hangs: Path, seconds: float) -> None:
        self.hangs, self.seconds, self.now = hangs, seconds, 0.0

    def __call__(self) -> float:
        pid = self.hangs.read_text() if self.hangs.exists() else ""
        self.now += self.seconds * bool(pid and is_alive(int(pid)))
        return self.now


@pytest.mark.slow
def test_what_fails_dies_or_hangs_does_not_stop_the_rest(
    faulty: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = tmp_path / "test_faulty.py"
    tests.write_text(textwrap.dedent(TESTS))
    path = run_stage(faulty, Options("cpu", True, [str(tests)], tmp_path), ABOUT, Clock(tmp_path / "hangs", 1))
    items = {item["name"]: item for item in json.loads(path.read_text())["items"]}
    assert path.name == "some-card-gpu-9-rehearsal.json"
    assert {name: item["status"] for name, item in items.items()} == (
        {"good": "ok", "fails": "failed", "lacks": "skipped", "dies": "failed", "dies once": "ok", "hangs": "failed"}
        | {"last": "ok", "tests": "failed"}
    )
    assert items["fails"]["why"] == "ValueError: not today"
    assert items["fails"]["lines"][-1] == "ValueError: not today"
    assert items["lacks"]["why"].startswith("needs no_such_module, which cannot be imported (ModuleNotFoundError")
    assert items["dies"]["why"] == "its process was ended by SIGSEGV"
    assert items["dies"]["result"] == {"parts": {"first": 1}}
    assert items["dies once"]["result"]["before"] == {"tried": 1}
    assert "as its time was over" in items["hangs"]["why"]
    outcomes = {name.split("::")[1]: test for name, test in items["tests"]["result"]["tests"].items()}
    assert {name: test["outcome"] for name, test in outcomes.items()} == (
        {"test_good": "passed", "test_bad": "failed", "test_that_dies": "died", "test_that_is_skipped": "skipped"}
        | {"test_last": "passed"}
    )
    assert "one is not two" in "".join(outcomes["test_bad"]["lines"])
    assert items["tests"]["why"] == "RuntimeError: 2 of 5 tests failed"
    capsys.readouterr()
    assert summary.show([path]) == 1
    output = capsys.readouterr().out
    assert "5 tests: 1 died, 1 failed, 2 passed, 1 skipped" in output
    assert "its process was ended by SIGSEGV" in output


def test_a_stage_ends_in_time(faulty: Stage, tmp_path: Path) -> None:
    stage = dataclasses.replace(faulty, seconds=100)
    path = run_stage(stage, Options("cpu", True, [], tmp_path), ABOUT, Clock(tmp_path / "hangs", 5))
    good, hangs, last = json.loads(path.read_text())["items"]
    assert good["status"] == "ok"
    assert "as the stage's time was over" in hangs["why"]
    assert (last["status"], last["why"]) == ("skipped", "no time was left")


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_stage_leaves_a_whole_file_and_no_process(faulty: Stage, tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from benchmarks.gpu.items import Options, Stage
        from benchmarks.gpu.runner import run_stage
        options = Options("cpu", True, [], Path({str(tmp_path)!r}))
        run_stage(Stage(9, "faulty", 900, "faulty"), options, {ABOUT!r}, lambda: 0.0)
    """
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    hangs, file = tmp_path / "hangs", tmp_path / "some-card-gpu-9-rehearsal.json"

    def statuses() -> list[str]:
        return [item["status"] for item in json.loads(file.read_text())["items"]] if file.exists() else []

    wait_for(lambda: process.poll() is not None or (hangs.exists() and hangs.read_text() != "" and "ok" in statuses()))
    process.kill()
    process.wait()
    assert statuses()[::2] == ["ok", "waiting"]
    wait_for(lambda: not is_alive(int(hangs.read_text())))


def test_a_missing_wheel_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("pydantic", "tomli_w") else find(name)
    )
    assert call(monkeypatch, "--stage", 2, "--device", "cpu", "--tiny", "--out", tmp_path) == 2
    assert capsys.readouterr().err == (
        "pydantic and tomli_w are not installed: call `make gpu-wheels` where there is a network, bring the folder "
        "wheels/ here, and call `make gpu` again.\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(monkeypatch, "--stage", 1) == 2
    assert "`make gpu DEVICE=cpu` rehearses without one" in capsys.readouterr().err


def test_the_summary_shows_measured_beside_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = {"method": "flash-kmeans", "shape": [389, 10000, 800], "data": "normal", "why": "", "seconds": 2e-3}
    result: dict[str, Any] = {
        "rows": [row("scan", 27.0, "us", 18), row("step", 10.0, "ms", (9, 12)), row("memory", 12.0, "MiB")],
        "kernels": [{"kernel": "k" * 100, "calls": 2.0, "us": 1234.5, "share": 0.25}],
        "tiles": {"128 x 256 x 64": {"389 x 10,000 x 800": {"scan": 20.0, "decide": 5.0, "refine": 4.0}}},
        "bench": [bench | {"share_of_peak": 0.12, "nearest": 0.98}, bench | {"why": "not installed", "seconds": None}],
        "counters": [{"kernel": "scan_kernel", "sm__throughput.avg.pct_of_peak_sustained_elapsed %": "61.5"}],
        "peak_mb": 2048,
    }
    items = [{"name": "one", "status": "ok", "result": result}, {"name": "two", "status": "running"}]
    stage = ABOUT | {"stage": 2, "title": "search", "seconds": 3.0, "limit_s": 450, "items": items}
    path = measure.write(stage, "gpu-2", tmp_path)
    assert summary.show([path]) == 1  # an item was not run to its end
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "scan 27 us 18 1.50" in lines
    assert "step 10 ms 9 to 12 0.95" in lines
    assert "memory 12 MiB" in lines
    assert any(line.startswith("kkk") and line.endswith("... 2.0 1,234 25.0%") for line in lines)
    assert "128 x 256 x 64 389 x 10,000 x 800 20 5 4" in lines
    assert "flash-kmeans 389 x 10,000 x 800 normal 2 12.0% 98.00%" in lines
    assert "flash-kmeans 389 x 10,000 x 800 normal not installed" in lines
    assert "sm__throughput.avg.pct_of_peak_sustained_elapsed % 61.5" in lines
    assert "two running 0" in lines
    assert "Peak memory of a process: 2,048 MiB (one)." in lines
    assert summary.show([]) == 2
