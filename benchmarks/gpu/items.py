"""The items of `make gpu`, and the child process that runs them and reports their results to its parent."""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imletriton.system.device import memory_mb

ROOT = Path(__file__).parents[2]
LINES = 12  # kept of a traceback, or of the end of a child's output
Result = dict[str, Any]


class Skipped(Exception):  # noqa: N818
    """The reason why an item cannot run here."""


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        device: The device's name.
        tiny: Whether to rehearse with tiny shapes.
        tests: Paths or names of the tests to run instead of all.
        out: The folder for the JSON files.
    """

    device: str
    tiny: bool
    tests: list[str]
    out: Path


@dataclass
class Bench:
    """What an item is given.

    Attributes:
        device: The device to measure on.
        options: The options of the command line.
        before: What this item had reported when its last process died; empty at first.
        note: Reports a part of the result at once. Dictionaries are merged with what was reported before.
    """

    device: torch.device
    options: Options
    before: Result
    note: Callable[[Result], None]

    @property
    def tiny(self) -> bool:
        """Whether to rehearse with tiny shapes."""
        return self.options.tiny

    def need(self, *modules: str) -> None:
        """Skip the item if one of the modules cannot be imported."""
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # a package may fail to load in many ways
                raise Skipped(f"needs {module}, which cannot be imported ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Item:
    """Something to run.

    Attributes:
        name: Its name, unique in the stage.
        work: Returns the result as JSON values. `rows`, `tests`, `kernels`, `tiles` and `bench` get tables.
        seconds: The most that it may take.
        needs_cuda: Whether it is skipped without a GPU.
        restarts: How often it may continue in a new process after its process has died.
    """

    name: str
    work: Callable[[Bench], Result]
    seconds: float
    needs_cuda: bool = False
    restarts: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of the measurements. Its module has `waves(options)`, which returns lists of lists of lists of items."""

    number: int
    title: str
    seconds: float
    module: str

    def waves(self, options: Options) -> list[list[list[Item]]]:
        """The stage's items."""
        waves: list[list[list[Item]]] = importlib.import_module(self.module).waves(options)
        return waves


def row(what: str, measured: float, unit: str, predicted: tuple[float, float] | float | None = None) -> Result:
    """Make a row of the summary: a measured value, and the predicted one or its least and greatest value."""
    expected = predicted if predicted is None or isinstance(predicted, tuple) else (predicted, predicted)
    return {"what": what, "measured": measured, "unit": unit, "predicted": expected}


def merge(into: Result, new: Result) -> None:
    """Merge `new` into a result: dictionaries key by key, everything else replaced."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def child() -> None:
    """Run the items that the parent asks for, and report their results to it."""
    stage, options, wave, group, names, before, parent, descriptor = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    opts = Options(**options | {"out": Path(options["out"])})
    os.set_inheritable(descriptor, False)
    pipe = os.fdopen(descriptor, "w", buffering=1)
    lock = threading.Lock()

    def tell(name: str, **values: Any) -> None:
        with lock:
            pipe.write(json.dumps({"item": name} | values) + "\n")

    device = torch.device(opts.device)
    for item in Stage(**stage).waves(opts)[wave][group]:
        if item.name in names:
            tell(item.name, status="running")
            bench = Bench(device, opts, before.get(item.name, {}), lambda result, n=item.name: tell(n, result=result))  # type: ignore[misc]
            found = _run(item, bench)
            tell(item.name, **found)
            if found["status"] == "failed" and device.type == "cuda":
                os._exit(0)  # the GPU may be unusable for this process: the parent starts another one


def _run(item: Item, bench: Bench) -> dict[str, Any]:
    """Run one item; return what to report to the parent."""
    try:
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        result = item.work(bench)
        return {"status": "ok", "result": result | {"peak_mb": memory_mb(bench.device)}}
    except Skipped as why:
        return {"status": "skipped", "why": str(why)}
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        reason = str(error).strip().splitlines() or ["failed"]
        return {"status": "failed", "why": f"{type(error).__name__}: {reason[0]}", "lines": lines[-LINES:]}


def _end_with(parent: int) -> None:
    """End this process and all that it has started once its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)
