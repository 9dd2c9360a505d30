"""Stage 1 of `make gpu`: whether the kernels, the search and the trainer give the right results on this card."""

import faulthandler
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.gpu.items import ROOT, Bench, Item, Options, Result, Skipped, row
from imletriton.commands.doctor import checks as checks_of_doctor
from imletriton.search.self_check import run_check

TESTS = ["tests/kernels", "tests/search", "tests/distance", "tests/generator", "tests/training/test_trainer.py"]
TINY_TESTS = [
    "tests/distance/test_feature_ops.py",
    "tests/kernels/test_unit_sketch.py::test_no_samples_give_no_sketches",
]
PROCESSES = 8  # that share the tests
TEST_SECONDS = 150  # for one test, compiling included; after that, another process continues with the next test
LINES = 8  # kept of a failure


def waves(options: Options) -> list[list[list[Item]]]:
    """All tests but those for a GPU, in parallel; then what needs the GPU for itself."""
    shards = 1 if options.tiny else min(PROCESSES, os.cpu_count() or 1)
    tests = [Item(f"tests {k + 1} of {shards}", tests_of(k, shards, "not gpu"), 210, restarts=6) for k in range(shards)]
    alone = [
        Item("checks against float64", checks, 60),
        Item("tests that need a GPU", tests_of(0, 1, "gpu"), 75, needs_cuda=True, restarts=3),
        Item("doctor under compute-sanitizer", sanitizer, 120, needs_cuda=True),
    ]
    return [[[item] for item in tests], [alone]]


# -- tests -------------------------------------------------------------------------------------------------------------


class Outcomes:
    """A pytest plugin that reports the outcome of each test at once, and ends a process that hangs.

    Args:
        note: Reports a part of the result.
        known: The tests that an earlier process ran or died in, which are skipped.
        part: Which of the remaining tests to run: the index of the first one, and the step.
        log: Where the stacks of a hanging test are written.
        device: The device that the tests use.
    """

    def __init__(
        self, note: Callable[[Result], None], known: Result, part: tuple[int, int], log: TextIO, device: torch.device
    ) -> None:
        self.note, self.known, self.part, self.log, self.device = note, known, part, log, device
        self.outcomes: Result = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        first, step = self.part
        items[:] = [item for item in items[first::step] if item.nodeid not in self.known]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._tell(report, "failed")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.note({"tests": {nodeid: {"outcome": "died"}}})  # unless another outcome follows
        faulthandler.dump_traceback_later(TEST_SECONDS, exit=True, file=self.log)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self._tell(report, report.outcome)
        if report.failed and self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError:  # after an illegal access, nothing more runs in this process
                os._exit(3)

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _tell(self, report: Any, outcome: str) -> None:
        found: Result = {"outcome": outcome, "seconds": round(getattr(report, "duration", 0.0), 2)}
        if outcome == "failed":
            found["lines"] = str(report.longrepr).strip().splitlines()[-LINES:]
        elif outcome == "skipped":
            found["lines"] = [str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)]
        if self.outcomes.get(report.nodeid, {}).get("outcome") != "failed":  # by a failure when it was torn down
            self.outcomes[report.nodeid] = found
            self.note({"tests": {report.nodeid: found}})


def tests_of(first: int, step: int, marker: str) -> Callable[[Bench], Result]:
    """Make an item that runs every step-th test with a marker, from the first on."""

    def work(bench: Bench) -> Result:
        bench.need("pytest")
        import pytest

        everything = ["tests"] if marker == "gpu" else TESTS
        paths = bench.options.tests or (TINY_TESTS if bench.tiny else everything)
        log = os.fdopen(os.dup(2), "w")  # pytest takes the process's own
        known = bench.before.get("tests", {})
        plugin = Outcomes(bench.note, known, (first, step), log, bench.device)
        began = time.monotonic()
        pytest.main([*paths, "-m", marker, "-q", "-p", "no:cacheprovider", "--tb=short"], plugins=[plugin])
        counts = count(known | plugin.outcomes)
        if not counts:
            raise Skipped("no tests were found")
        if bad := counts.get("failed", 0) + counts.get("died", 0):
            raise RuntimeError(f"{bad} of {sum(counts.values())} tests failed")
        return {"rows": [row(f"tests {first + 1} of {step}, {marker}", time.monotonic() - began, "s")]}

    return work


def count(tests: Result) -> dict[str, int]:
    """Count the tests by outcome."""
    outcomes = [test["outcome"] for test in tests.values()]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}


# -- checks ------------------------------------------------------------------------------------------------------------


def checks(bench: Bench) -> Result:
    """Run the checks of doctor one by one, and note the time of each, compiling included."""
    wrong = []
    for name, check in checks_of_doctor().items():
        began = time.monotonic()
        found = run_check(check, bench.device)
        bench.note({"checks": {name: {"wrong": found, "seconds": round(time.monotonic() - began, 2)}}})
        wrong += [f"{name}: {found}"] if found else []
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return {}


def sanitizer(bench: Bench) -> Result:
    """Run `imletriton doctor` under compute-sanitizer, which finds reads and writes outside of allocations.

    Raises:
        RuntimeError: Its exit code is not 0.
    """
    began = time.monotonic()
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [tool("compute-sanitizer"), "--error-exitcode", "86", sys.executable, "-m", "imletriton", "doctor"]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    bench.note({"lines": (done.stdout + done.stderr).strip().splitlines()[-40:]})
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}")
    return {"rows": [row("doctor under compute-sanitizer", time.monotonic() - began, "s")]}


def tool(name: str) -> str:
    """Find one of CUDA's tools.

    Raises:
        Skipped: It is not installed.
    """
    folders = ["/usr/local/cuda/bin", *map(str, Path("/opt/nvidia").glob("nsight-compute/*"))]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise Skipped(f"{name} is not installed")
    return found
