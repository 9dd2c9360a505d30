"""Commands that are killed at random moments, between two things that they do to files, and while they write one."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import picture, zipped
from harness import WORK, Outcome, command, copied, fit, forked, run

from imletriton.data.catalogue import DATASETS
from imletriton.runs.checkpoint import check_checkpoint
from imletriton.runs.reading import Damaged
from imletriton.runs.run import Run

KILLS_A_RUN = 5  # before it is left in peace to end
WAYS = ("at random", "between files", "in a file")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.fsync")
MEASURED = ("images_per_s", "pool_per_s", "memory_mb", "seconds")  # differs from run to run
GET = ["data", "get", "dog"]
MADE = {"gen": "gen", "eval": "eval.json", "show": "figures", "report": "report.html"}  # by each command, in the run
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Changes:
    """Calls `act(k)` before the k-th thing that this process does to a file or folder in its working directory."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.count, self.here, self.busy = act, 0, str(Path.cwd()), False
        fsync = os.fsync

        def audited(descriptor: int) -> None:
            sys.audit("os.fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        os.fsync = audited
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook: called before each operation on a file."""
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if self.busy or not (opened or event in CHANGES) or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
        if path.startswith(self.here) and ".cache" not in path:
            self.busy = True
            self.act(self.count)
            self.busy, self.count = False, self.count + 1


def sizes(folder: Path) -> dict[Path, int]:
    """The sizes of all files below a folder, in which other threads may be renaming some."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                found[path] = path.stat().st_size
    return found


def dying(words: list[str], at: int, in_file: random.Random | None) -> int:
    """Run a command that is killed before its change number `at`; with `in_file`, in the writing that came before.

    As much is then missing of one of the files that have grown since the change before.
    """

    def content() -> dict[int, tuple[Path, int]]:
        """Each file by its inode, which stays the same where it is renamed."""
        found = dict[int, tuple[Path, int]]()
        for path, size in sizes(Path.cwd()).items():
            with contextlib.suppress(FileNotFoundError):
                found[path.stat().st_ino] = path, size
        return found

    before = content()

    def act(k: int) -> None:
        nonlocal before
        if k == at - 1 and in_file:
            before = content()
        if k == at:
            now = content() if in_file else {}
            old = {inode: before[inode][1] if inode in before else 0 for inode in now}
            grown = sorted((path, old[inode], size) for inode, (path, size) in now.items() if size > old[inode])
            if in_file and grown:
                path, low, high = in_file.choice(grown)
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(path, in_file.randint(low, high - 1))
            os.kill(os.getpid(), signal.SIGKILL)

    Changes(act)
    return command(*words)


def count_changes(words: list[str], folder: Path) -> tuple[int, float]:
    """How many changes a command makes, and how many seconds it takes."""

    def count() -> int:
        changes = Changes(lambda k: None)
        code = command(*words)
        (folder / "count").write_text(str(changes.count))
        return code

    ended = forked(count, folder)
    assert ended.code == 0, ended
    return int((folder / "count").read_text()), ended.seconds


class Kills:
    """Kills commands and does their work again, in copies of what `harness.make_runs` has made in `base`.

    Attributes:
        kills: How many processes were killed, or asked to stop, so far.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.kills = base, 0
        self.expected = everything(base / "run")
        self.lengths = dict[str, tuple[int, float]]()
        archive = base / DATASETS / ".archives" / "AnimalFace-dog.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(zipped({f"AnimalFace-dog/{k}.png": picture(k, side=64) for k in range(8)}))
        self.commands = {
            "fit": ["tiny.toml"],
            **{name: ["tiny.toml", "run"] for name in WORK},
            "data get": [str(DATASETS)],
        }
        for name, needed in self.commands.items():
            with copied(base, *needed) as here:
                self._clear(name, here)
                self.lengths[name] = count_changes(self.words(name, here), here)

    def words(self, name: str, here: Path) -> list[str]:
        begun = (here / "run" / "recipe.toml").exists()
        return GET if name == "data get" else WORK.get(name) or fit(*["--resume"] * begun)

    def _clear(self, name: str, here: Path) -> None:
        """Remove what the command had made in the run that was copied."""
        if name in MADE:
            path = here / "run" / MADE[name]
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def kill(self, name: str, here: Path, rng: random.Random) -> Outcome:
        """Run a command, and kill it in a way that is chosen at random; it may have ended before."""
        changes, seconds = self.lengths[name]
        way, words = rng.choice(WAYS), self.words(name, here)
        if way == "at random":
            moment = rng.uniform(0, 1.2 * seconds)

            def watch(pid: int) -> None:
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)

            ended = run(here, *words, watch=watch)
        else:
            at = rng.randrange(changes)
            ended = forked(lambda: dying(words, at, rng if way == "in a file" else None), here)
        self.kills += ended.code == -signal.SIGKILL
        return ended

    def case(self, name: str, seed: int) -> list[str]:
        """Kill a command up to KILLS_A_RUN times, then let it end; what is wrong then."""
        rng, problems = random.Random(f"{name} {seed}"), list[str]()
        with copied(self.base, *self.commands[name]) as here:
            self._clear(name, here)
            for _ in range(KILLS_A_RUN):
                ended = self.kill(name, here, rng)
                problems += ended.problems(0, -signal.SIGKILL) + damaged(here / "run")
                if ended.code == 0:
                    break
            ended = run(here, *self.words(name, here))
            problems += ended.problems(0) or self.differs(name, here)
        return problems

    def stop(self, seed: int) -> list[str]:
        """Ask training to stop, by a signal at a random moment, then let it go on; what is wrong then."""
        rng, problems = random.Random(f"stop {seed}"), list[str]()
        with copied(self.base, "tiny.toml") as here:
            for _ in range(KILLS_A_RUN):
                moment, number = rng.uniform(0, 1.2 * self.lengths["fit"][1]), rng.choice(STOPS)

                def watch(pid: int, moment: float = moment, number: int = number) -> None:
                    time.sleep(moment)
                    os.kill(pid, number)

                self.kills += 1
                saved = len(Run(here / "run").checkpoints)
                ended = run(here, *self.words("fit", here), watch=watch)
                problems += ended.problems(0, 130, -signal.SIGTERM, -signal.SIGHUP) + damaged(here / "run")
                if "was stopped at step" in ended.output and not len(Run(here / "run").checkpoints) >= max(saved, 1):
                    problems.append(f"said that it had saved, and had not: {ended.output}")
                if ended.code == 0:
                    break
            problems += run(here, *self.words("fit", here)).problems(0)
            end, expected = everything(here / "run"), dict(self.expected)
            if any(end[key] != expected[key] for key in ("model.safetensors", "trainer.safetensors", "log")):
                problems.append("ended with another result than a run that was not stopped")
        return problems

    def differs(self, name: str, here: Path) -> list[str]:
        """What the command has made, where it is not what it makes undisturbed."""
        if name == "data get":
            pictures = [path for path in sizes(here / DATASETS) if path.suffix == ".png"]
            whole = {path.parent.name for path in pictures} == {"AnimalFace-dog"} and len(pictures) == 8
            return [] if whole else [f"did not fetch all pictures, or left some elsewhere: {pictures}"]
        if name == "fit":
            end = everything(here / "run")
            return [f"{key} is not as without kills" for key in self.expected if end.get(key) != self.expected[key]]
        made, expected = ({p.relative_to(at): p for p in sizes(at)} for at in (here / "run", self.base / "run"))
        problems = [f"{path} is missing" for path in expected.keys() - made.keys()]
        for path, file in expected.items():
            if path in made and path.suffix != ".html" and made[path].read_bytes() != file.read_bytes():
                problems.append(f"{path} is not as without kills")
        return problems


def damaged(folder: Path) -> list[str]:
    """Which checkpoints of a run are not whole."""
    problems = []
    for checkpoint in Run(folder).checkpoints:
        try:
            check_checkpoint(checkpoint)
        except Damaged as error:
            problems.append(f"{error}")
    return problems


def everything(folder: Path) -> dict[str, Any]:
    """What a run's end consists of: its last checkpoint's files, its last sheet, and the log without speeds."""
    if not (checkpoints := Run(folder).checkpoints):
        return {}
    files: dict[str, Any] = {path.name: path.read_bytes() for path in checkpoints[-1].iterdir()}
    files["checkpoints"] = [checkpoint.name for checkpoint in checkpoints]
    files["sheets"] = [path.read_bytes() for path in sorted((folder / "samples").glob("0*.png"))]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    files["log"] = [{key: value for key, value in record.items() if key not in MEASURED} for record in log]
    return files
