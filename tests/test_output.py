"""What is printed, to whom: terminals in ASCII, readers that have gone, full disks."""

import errno
import io
import os
import pty
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from conftest import run_cli
from torch import nn

from imletriton.console import FitDisplay, console, output, sparkline
from imletriton.errors import notice
from imletriton.runs.run import Run
from imletriton.runs.schema import Evaluation, LogRecord, Metric
from imletriton.tables import metrics_table
from imletriton.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "lost", None)


def evaluation() -> Evaluation:
    return Evaluation(
        run="tiny-001",
        step=20,
        samples="seed 0",
        count=50,
        data="Gesichter für ±",
        pictures=100,
        resolution=16,
        weights="random",
        metrics={"fid": Metric(value=31.4), "kid": Metric(value=0.02, deviation=0.001)},
        published={},
        notes=[],
        imletriton="0.1.0",
        written=None,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "LC_ALL=C"])
def test_a_terminal_gets_what_it_can_show(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "utf-8" if encoding == "LC_ALL=C" else encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("LC_ALL", "C" if encoding == "LC_ALL=C" else "en_GB.UTF-8")
    console.print(metrics_table(evaluation()))
    rows = [line for line in written.getvalue().decode("latin-1").splitlines() if line[:1] in "|+"]
    assert len({len(line) for line in rows}) <= 1
    console.print("a name that is no text: \udcff")  # as Python has file names that are no UTF-8
    shown = written.getvalue()
    assert b"31.4" in shown
    if encoding == "utf-8":
        assert "FID ↓" in shown.decode()
        assert "│" in shown.decode()
    else:
        assert b"FID (lower is better) | KID (lower is better) |" in shown
    if encoding in ("ascii", "LC_ALL=C"):
        assert shown.isascii()
        assert b"0.02 +- 0.001" in shown


def test_training_goes_on_when_nobody_reads_the_output(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = Run(tmp_path / "run")
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        words = ["--device", "cpu", "--run-dir", str(run.path), "--set", "train.iterations=10"]
        assert run_cli(monkeypatch, "fit", str(recipe_file), *words) == 0
    told = f"The output was closed: training goes on, and {run.log_file} records it.\n"
    assert capsys.readouterr().err == told
    assert run.log()[-1].step == 10
    assert run.checkpoints[-1].name == "000010"


def test_a_terminal_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        os.close(ours)
        monkeypatch.setattr(sys, "stdout", terminal)
        console.print("Is anybody there?")
        console.print("No.")
    assert output.lost
    assert output.lost.errno == errno.EIO
    output.check()


def test_a_full_disk_is_told_where_the_output_is_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_cli(monkeypatch, "data", "list", "--json") == 1
    assert capsys.readouterr().err.startswith("fault: Not all of the output could be written (No space left on device)")


def test_a_notice_is_printed_once_though_pythons_filters_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listing() -> list[object]:
        notice("A file is damaged.")
        with warnings.catch_warnings():  # whereupon Python forgets which warnings it has shown
            warnings.simplefilter("ignore")
        notice("A file is damaged.")
        return []

    monkeypatch.setattr("imletriton.data.fetching.listing", listing)
    assert run_cli(monkeypatch, "data", "list", "--json") == 0
    assert capsys.readouterr().err == "warning: A file is damaged.\n"


def test_the_time_left_is_told_by_the_steps_and_not_by_the_pool_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 300.0, 600.0, 601.0])  # at the start, twice while the pool is drawn, after ten steps
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    trainer = SimpleNamespace(step=0, n=9, device="cpu", pool=SimpleNamespace(size=90), generator=nn.Linear(1, 1))
    with FitDisplay() as display:
        display.started(Run(tmp_path), cast(Trainer, trainer), 1000)
        display.bar.stop()
        for done in (45, 90):
            display.pool(done, 90)
        for step in range(1, 11):
            display.step(step)
        display.log(LogRecord(step=10, images_per_s=9.0, memory_mb=9))
    assert "step 10/1000  loss none  9 images/s  9 MiB  0:01:39 left" in capsys.readouterr().out


def test_a_curve_is_drawn_on_one_line() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 36) == "█▇▆▅▄▃▂▁"
    assert sparkline([3.0, 1.0] * 50, 10) == "▁" * 10  # of equal means
    assert len(sparkline(range(1000), 36)) == 36
    assert sparkline([2.0], 36) == "▁"
    assert sparkline([float("nan"), 1.0, 2.0], 36) == "▁█"
    assert sparkline([], 36) == ""


@pytest.mark.parametrize(("encoding", "curve"), [("utf-8", "█▅▁"), ("ascii", "#=_"), ("latin-1", "#=_")])
def test_distances_are_told_as_a_curve_in_every_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, curve: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    monkeypatch.setenv("LC_ALL", "en_GB.UTF-8")
    run = Run(tmp_path)
    earlier = [LogRecord(step=step, samples_to_data=value) for step, value in ((5, 0.3), (15, 9.0))]
    run.log_file.write_text("".join(f"{record.model_dump_json(exclude_unset=True)}\n" for record in earlier))
    trainer = SimpleNamespace(step=10, n=9, device="cpu", pool=SimpleNamespace(size=90), generator=nn.Linear(1, 1))
    with FitDisplay() as display:
        display.started(run, cast(Trainer, trainer), 1000)  # resumed at step 10, so that step 15 does not count
        for step, value in ((20, 0.2), (30, 0.1)):
            display.distances(LogRecord(step=step, samples_to_data=value, held_out_to_samples=0.7))
    last = written.getvalue().decode(encoding).splitlines()[-1]
    level = "▁" if encoding == "utf-8" else "_"
    assert last == f"step 30/1000  samples to data 0.1000  {curve}  held out to samples 0.7000  {level * 2}"
