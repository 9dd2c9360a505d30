"""Commands that are killed, or asked to stop, before any change to a file or in the middle of writing one.

Where between two changes a process dies makes no difference on the disk.
"""

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Outcome, command, damaged, differs, forked, new_folder, prepare, run, sizes, words_of

from imletriton.runs.run import Run

KILLS_A_RUN = 5  # before it is left in peace to end
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.fsync")
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


def content() -> dict[int, tuple[Path, int]]:
    """Each file below the working directory by its inode, which stays the same where it is renamed; with its size."""
    found = dict[int, tuple[Path, int]]()
    for path, size in sizes(Path.cwd()).items():
        with contextlib.suppress(FileNotFoundError):
            found[path.stat().st_ino] = path, size
    return found


def dying(words: list[str], at: int, number: int, in_file: random.Random | None) -> int:
    """Run a command that gets a signal before its change number `at`; with `in_file`, in the writing that came before.

    As much is then missing of one of the files that have grown since the change before.
    """
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
            os.kill(os.getpid(), number)

    Changes(act)
    return command(*words)


def count_changes(words: list[str], here: Path) -> int:
    """How many changes a command makes."""

    def count() -> int:
        changes = Changes(lambda k: None)
        code = command(*words)
        (here / "count").write_text(str(changes.count))
        return code

    ended = forked(count, here)
    assert ended.code == 0, ended
    return int((here / "count").read_text())


class Kills:
    """Kills commands and lets them do their work again, in copies of what `harness.make_runs` has made in `base`.

    Attributes:
        kills: How many processes were killed, or asked to stop, so far.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.kills = base, 0
        self.lengths = dict[str, int]()

    def length(self, name: str) -> int:
        if name not in self.lengths:
            with new_folder(self.base) as here:
                prepare(name, self.base, here)
                self.lengths[name] = count_changes(words_of(name, here), here)
        return self.lengths[name]

    def disturb(self, name: str, here: Path, rng: random.Random, number: int, in_file: random.Random | None) -> Outcome:
        """Run a command that gets a signal before a change that is chosen at random."""
        words, at = words_of(name, here), rng.randrange(self.length(name))
        return forked(lambda: dying(words, at, number, in_file), here)

    def case(self, name: str, seed: int) -> list[str]:
        """Kill a command up to KILLS_A_RUN times, then let it end; what is wrong then."""
        rng, problems = random.Random(f"{name} {seed}"), list[str]()
        with new_folder(self.base) as here:
            prepare(name, self.base, here)
            for _ in range(KILLS_A_RUN):
                ended = self.disturb(name, here, rng, signal.SIGKILL, rng.choice((rng, None)))
                self.kills += ended.code == -signal.SIGKILL
                problems += ended.problems(0, -signal.SIGKILL) + damaged(here / "run")
                if ended.code == 0:
                    break
            problems += run(here, words_of(name, here)).problems(0) or differs(name, self.base, here)
        return problems

    def stop(self, seed: int) -> list[str]:
        """Ask training to stop up to KILLS_A_RUN times, then let it end; what is wrong then."""
        rng, problems = random.Random(f"stop {seed}"), list[str]()
        with new_folder(self.base) as here:
            prepare("fit", self.base, here)
            for _ in range(KILLS_A_RUN):
                self.kills += 1
                saved = len(Run(here / "run").checkpoints)
                ended = self.disturb("fit", here, rng, rng.choice(STOPS), None)
                problems += ended.problems(0, 130, -signal.SIGTERM, -signal.SIGHUP) + damaged(here / "run")
                if "was stopped at step" in ended.output and not len(Run(here / "run").checkpoints) >= max(saved, 1):
                    problems.append(f"said that it had saved, and had not: {ended.output}")
                if ended.code == 0:
                    break
            problems += run(here, words_of("fit", here)).problems(0)
            same = ("model.safetensors is", "trainer.safetensors is", "log is")  # checkpoints are where it was stopped
            problems += [told for told in differs("fit", self.base, here) if told.startswith(same)]
        return problems
