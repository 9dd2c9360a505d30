"""Run lists of items in child processes, so that a crash, a hang or a full GPU costs one item at most.

A stage is a list of waves, a wave is a list of groups that run at the same time, and a group is a list of items that
share a process. A child reports its results through a pipe, line by line. The parent keeps the stage's JSON file up to
date, so it is complete after every item even if the parent is killed. A child that dies, or exceeds the time limit of
an item, is replaced by one that continues with the next item.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.gpu.items import LINES, ROOT, Item, Options, Result, Stage, merge

START_SECONDS = 90.0  # within which a child must begin its first item
POLL_SECONDS = 0.2  # between two looks at a silent child
WRITE_EVERY = 1.0  # seconds between two writes of the file while items report partial results


@dataclass
class Run:
    """A stage while it runs.

    Attributes:
        stage: The stage.
        options: The options of the command line.
        about: The description of the machine, which comes first in the file.
        items: What is known of each item: `status` is waiting, running, ok, failed or skipped.
        path: The file.
        clock: Tells the time in seconds; all time limits are measured by it.
    """

    stage: Stage
    options: Options
    about: Result
    items: dict[str, Result] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    path: Path = Path()
    written: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)
    children: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def left(self) -> float:
        """The remaining seconds of the stage."""
        return self.stage.seconds - (self.clock() - self.began)

    def write(self, at_once: bool = True) -> None:
        """Write the file; unless `at_once`, only every WRITE_EVERY seconds."""
        with self.lock:
            if not at_once and self.clock() - self.written < WRITE_EVERY:
                return
            self.written = self.clock()
            result = self.about | {"stage": self.stage.number, "title": self.stage.title, "tiny": self.options.tiny}
            result |= {"limit_s": self.stage.seconds, "seconds": round(self.written - self.began, 1)}
            result["items"] = [{"name": name} | values for name, values in self.items.items()]
            suffix = f"gpu-{self.stage.number}{'-rehearsal' if self.options.tiny else ''}"
            self.path = measure.write(result, suffix, self.options.out)

    def end(self, name: str, seconds: float, **values: Any) -> None:
        """Record how an item has ended, and print it."""
        with self.lock:
            item = self.items[name]
            merge(item, values | {"seconds": round(seconds, 2)})
            why = f": {item['why']}" if item.get("why") else ""
            passed = self.clock() - self.began
            print(f"{passed:6.1f} s  {item['status']:7} {name} ({seconds:.1f} s){why}"[:300], flush=True)
            self.write()

    def stop(self) -> None:
        """End all children and start no more."""
        self.began -= self.stage.seconds
        for pid in [*self.children]:
            _kill(pid)


def run_stage(stage: Stage, options: Options, about: Result, clock: Callable[[], float] = time.monotonic) -> Path:
    """Run a stage; the path of its JSON file."""
    run = Run(stage, options, about, clock=clock)
    waves = stage.waves(options)
    run.items = {item.name: {"status": "waiting"} for wave in waves for group in wave for item in group}
    run.write()
    for w, wave in enumerate(waves):
        with ThreadPoolExecutor(len(wave)) as pool:
            groups = [pool.submit(_run_group, run, w, g, group) for g, group in enumerate(wave)]
            try:
                for group in groups:
                    group.result()
            except BaseException:  # such as Ctrl-C: the pool waits for its threads
                run.stop()
                raise
    return run.path


def _run_group(run: Run, wave: int, group: int, items: list[Item]) -> None:
    """Run the items of a group, in as many processes as it takes."""
    waiting, restarts = list(items), {item.name: item.restarts for item in items}
    for item in items:
        if item.needs_cuda and run.options.device == "cpu":
            run.end(item.name, 0.0, status="skipped", why="needs CUDA")
            waiting.remove(item)
    while waiting and run.left > 0:
        died_in, seconds = _run_child(run, wave, group, waiting)
        if died_in and restarts[died_in.name] > 0 and run.left > 0:
            restarts[died_in.name] -= 1
        elif died_in:
            run.end(died_in.name, seconds, status="failed")
        waiting = [item for item in waiting if run.items[item.name]["status"] in ("waiting", "running")]
    for item in waiting:
        run.end(item.name, 0.0, status="skipped", why="no time was left")


def _run_child(run: Run, wave: int, group: int, items: list[Item]) -> tuple[Item | None, float]:
    """Run items in one process, until it ends or has to be ended.

    Returns:
        The item in which the process died, if any, and the seconds it had taken. What it had found stays; `why` and
        `lines` tell how the process died.
    """
    by_name = {item.name: item for item in items}
    reading, writing = os.pipe()
    before = {name: run.items[name].get("result", {}) for name in by_name}
    options = asdict(run.options) | {"out": str(run.options.out)}
    job = [asdict(run.stage), options, wave, group, [*by_name], before, os.getpid(), writing]
    command = [sys.executable, "-c", "from benchmarks.gpu.items import child; child()"]
    running, began, why, pending, ended = None, run.clock(), "", b"", 0
    with tempfile.TemporaryFile() as said, selectors.DefaultSelector() as selector:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            pass_fds=[writing],
            start_new_session=True,
        )
        run.children.add(process.pid)
        os.close(writing)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(job).encode())
        selector.register(reading, selectors.EVENT_READ)
        while ended < len(items):
            ready, taken = selector.select(POLL_SECONDS), run.clock() - began
            if run.left <= 0 or taken > (running.seconds if running else START_SECONDS):
                whose = "the stage's" if run.left <= 0 else "its"
                why = f"ended after {taken:.0f} s, as {whose} time was over"
                break
            if not ready:
                if process.poll() is None:
                    continue
                break  # it has ended, but something that it started holds the pipe
            part = os.read(reading, 1 << 16)
            if not part:
                break
            *lines, pending = (pending + part).split(b"\n")
            for message in map(json.loads, lines):
                name = message.pop("item")
                status = message.get("status")
                with run.lock:
                    if status == "running":  # perhaps again: its results stay, but not how it ended
                        run.items[name] = {"result": run.items[name].get("result", {})}
                    merge(run.items[name], message)
                if status == "running":
                    running, began = by_name[name], run.clock()
                elif status:
                    run.end(name, run.clock() - began)
                    running, began, ended = None, run.clock(), ended + 1
                run.write(at_once=False)
        os.close(reading)
        _kill(process.pid)
        run.children.discard(process.pid)
        code = process.wait()
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-LINES:]
    unfinished = [item for item in items if run.items[item.name]["status"] in ("waiting", "running")]
    if not unfinished or (running is None and ended and not why):
        return None, 0.0  # a process that ends after a failed item leaves the rest to another
    died_in = running or unfinished[0]
    with run.lock:
        run.items[died_in.name] |= {"why": why or _death(code), "lines": last}
    return died_in, run.clock() - began


def _death(code: int) -> str:
    """Say how a process ended, by its exit code."""
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


def _kill(pid: int) -> None:
    """End a child and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
