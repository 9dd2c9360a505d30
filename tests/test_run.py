import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imletriton.errors import InputError
from imletriton.runs.run import Run, checkpoints_of, new_run, newest_run, runs_of


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
    with pytest.raises(InputError, match="No run with a checkpoint"):
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
