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

from conftest import picture, zipped
from harness import WORK, command, fit, forked, run
from kills import GET, damaged, everything

from imletriton.data.catalogue import DATASETS
from imletriton.runs.run import Run

COMMANDS = ("fit", *WORK, "data get")
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
    rng = random.Random(f"{name} {seed}")
    room = int(ROOM * rng.random() ** 3)  # most of the files are small
    disk = base / f".disk-{name}-{seed}"
    with small_disk(disk) as mounted:
        shutil.copy(base / "tiny.toml", disk)
        if name in WORK:
            shutil.copytree(base / "run", disk / "run")
            for made in ("gen", "figures"):
                shutil.rmtree(disk / "run" / made)
            (disk / "run" / "eval.json").unlink()
        if name == "data get":
            archive = disk / DATASETS / ".archives" / "AnimalFace-dog.zip"
            archive.parent.mkdir(parents=True)
            archive.write_bytes(zipped({f"AnimalFace-dog/{k}.png": picture(k, side=64) for k in range(8)}))

        def work() -> int:
            if not mounted:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1 << 14), resource.RLIM_INFINITY))  # with output
            return command(*_words(name, disk))

        if mounted:
            used = shutil.disk_usage(disk).used
            _mount("-o", f"remount,size={used + room}", str(disk))
        ended = forked(work, disk)
        problems = ended.problems() + damaged(disk / "run")
        if mounted:
            _mount("-o", "remount,size=64m", str(disk))
        again = run(disk, *_words(name, disk))
        problems += again.problems(0)
        if name == "fit" and not problems:
            end, expected = everything(disk / "run"), everything(base / "run")
            problems += [f"{key} is not as with room" for key in expected if end.get(key) != expected[key]]
        return problems


def _words(name: str, disk: Path) -> list[str]:
    begun = Run(disk / "run").recipe_file.exists()
    return GET if name == "data get" else WORK.get(name) or fit(*["--resume"] * begun)
