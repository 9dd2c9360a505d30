"""Commands on a disk that fills up while they write, at any amount of room; then there is room again.

The disk is a small tmpfs where one can be mounted. Elsewhere no file may become larger than the room.
"""

import contextlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import command, damaged, differs, forked, prepare, run, words_of

ROOM = 1 << 20  # bytes, at most, of room to begin with: more than any of the commands writes


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A context in which a folder is a disk of its own; False where that cannot be had."""
    place.mkdir(exist_ok=True)
    mounted = _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        shutil.rmtree(place, ignore_errors=True)


def case(base: Path, name: str, seed: int) -> list[str]:
    """Let a command run into a full disk, then once more with room; what is wrong then."""
    room = int(ROOM * random.Random(f"{name} {seed}").random() ** 3)  # most of the files are small
    disk = base / f".disk-{name}-{seed}"
    with small_disk(disk) as mounted:
        prepare(name, base, disk)

        def work() -> int:
            if not mounted:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1 << 14), resource.RLIM_INFINITY))  # with output
            return command(*words_of(name, disk))

        if mounted:
            _mount("-o", f"remount,size={shutil.disk_usage(disk).used + room}", str(disk))
        problems = forked(work, disk).problems() + damaged(disk / "run")
        if mounted:
            _mount("-o", "remount,size=64m", str(disk))
        return problems + (run(disk, words_of(name, disk)).problems(0) or differs(name, base, disk))
