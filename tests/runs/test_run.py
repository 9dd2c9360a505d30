import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from imletriton.errors import InputError, Notice
from imletriton.runs.log import RunLog
from imletriton.runs.run import Run, checkpoints_of, new_run, newest_run, runs_of
from imletriton.runs.schema import Evaluation, LogRecord, Metric


def test_runs_are_numbered_and_each_is_new(tmp_path: Path) -> None:
    paths = [new_run(name, tmp_path).path.name for name in ("dog", "dog", "dog-big", "dog")]
    assert paths == ["dog-001", "dog-002", "dog-big-001", "dog-003"]
    assert [p.name for p in runs_of("dog", tmp_path)] == ["dog-001", "dog-002", "dog-003"]


def test_runs_that_cannot_be_made_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted" / "disk" / "runs")
    for root in (tmp_path / "file", tmp_path / "dangling"):
        with pytest.raises(InputError, match="cannot be written"):
            new_run("dog", root)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for name in ("000020", ".000030", "notes", "1000000", "999000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["000020", "999000", "1000000"]


def test_the_newest_run_is_the_one_that_saved_last(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run with a checkpoint"):
        newest_run(tmp_path)
    for age, name in enumerate(("b-001", "a-001", "c-001")):
        checkpoint = tmp_path / name / "checkpoints" / "000010"
        checkpoint.mkdir(parents=True)
        os.utime(checkpoint, (time.time() - age,) * 2)
    new_run("d", tmp_path)  # has no checkpoint
    assert newest_run(tmp_path).path.name == "b-001"


def test_a_run_is_locked_against_another_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from imletriton.runs.run import Run\n"
        "with Run(Path(sys.argv[1])).lock(): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(InputError, match="being trained by another process"), Run(tmp_path).lock():
        pass
    holder.kill()
    holder.wait()
    with Run(tmp_path).lock():
        pass


def test_what_keeps_a_run_from_being_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(InputError, match=rf"{tmp_path}/\.lock cannot be written \(Is a directory\)"),
        Run(tmp_path).lock(),
    ):
        pass


def test_a_log_is_read_as_it_was_written_without_damaged_lines_and_those_after_the_step_resumed_from(
    tmp_path: Path,
) -> None:
    lines = [{"step": 10, "loss": None, "epoch": 1, "tau_min": 0.25, "luckiest": 3}, {"step": 20, "fid": 1e-9}]
    run = Run(tmp_path)
    assert run.log() == []
    with RunLog(run, 0, True, ["tensorboard"], {}) as log:
        for line in lines:
            log.write(LogRecord.model_validate(line))
    assert [json.loads(line) for line in run.log_file.read_text().splitlines()] == lines
    damaged = [
        b"5",
        b"null",
        b"[]",
        b'{"step": "many"}',
        b'{"step": -1}',
        b'{"step": 1e400}',
        b'{"step": 3, "tau": "x"}',
    ]
    damaged += [
        b"\xff\xfe",
        b'{"step": 3, "\xff": 1}',
        b"[" * 10**5,
        b'{"step":' + b"9" * 5000 + b"}",
        b'{"step": 30, "lo',
    ]
    with run.log_file.open("ab") as file:
        file.write(b"\n".join(damaged))
    with pytest.warns(Notice, match=rf"log\.jsonl has damaged lines, which are left out: {len(damaged)} of 14\."):
        assert [record.to_json() for record in run.log()] == lines
    assert (run.log()[0].epoch, run.log()[0].loss, run.log()[0].tau_min) == (1, None, 0.25)
    with pytest.warns(Notice), RunLog(run, 10, True, ["tensorboard"], {}):
        pass
    with warnings.catch_warnings(action="error"):
        run.log()
    assert [json.loads(line) for line in run.log_file.read_text().splitlines()] == lines[:1]


def test_an_evaluation_is_written_without_what_does_not_apply(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.evaluation() is None
    metrics = {"fid": Metric(value=2.5, samples=9)}
    known = {"count": 9, "data": "faces", "pictures": 100, "resolution": 16, "weights": "random", "published": {}}
    evaluation = Evaluation(
        run="r", step=None, samples="s", metrics=metrics, notes=[], imletriton="1", written=None, **known
    )
    assert evaluation.to_json()["metrics"] == {"fid": {"value": 2.5, "samples": 9}}
    assert list(evaluation.to_json()) == [
        *("run", "step", "samples", "count", "data", "pictures", "resolution", "weights"),
        *("metrics", "published", "notes", "imletriton", "written"),
    ]
    run.evaluation_file.write_text(json.dumps(evaluation.to_json()))
    assert run.evaluation() == evaluation
    wrong = [
        {"metrics": {"fdi": {"value": 1}}},
        {"metrics": {"fid": {"value": "low"}}},
        {"published": [1]},
        {"count": None},
    ]
    texts = [json.dumps(evaluation.to_json() | keys).encode() for keys in wrong]
    for text in (b"", b"{", b"null", b"[]", b"\xff", *texts):
        run.evaluation_file.write_bytes(text)
        with pytest.warns(Notice, match=r"eval\.json is damaged \(.*\) and is left out: evaluate again\."):
            assert run.evaluation() is None


def test_a_folder_in_a_files_place_is_told_where_only_history_is_lost(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log_file.mkdir()
    run.evaluation_file.mkdir()
    with pytest.warns(Notice, match=r"log\.jsonl is left out, as it cannot be read \(it is not a file\)\."):
        assert run.log() == []
    with pytest.warns(Notice, match=r"eval\.json is damaged \(it is not a file\) and is left out"):
        assert run.evaluation() is None
