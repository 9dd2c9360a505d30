"""Processes for what a test cannot do in its own: a server loads PyTorch once, and forks itself for each."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["imletriton.commands.fit", "torch._dynamo", "torch.utils.tensorboard"])


def start(result: Path, work: Callable[..., object], *arguments: object, **env: object) -> ForkServerProcess:
    """Start a process that calls a function of a module, with more in its environment.

    What the function returns, or the fault that it raises, lies in the file `result` afterwards.
    """
    process = CONTEXT.Process(target=_call, args=(result, work, arguments, env))
    process.start()
    return process


def _call(result: Path, work: Callable[..., object], arguments: tuple[object, ...], env: dict[str, object]) -> None:
    import torch

    from imletriton.errors import Fault

    os.environ |= {name: str(value) for name, value in env.items()}
    torch.set_num_threads(1)
    try:
        told = str(work(*arguments))
    except Fault as fault:
        told = f"fault: {fault}"
    result.write_text(told)


def exit_code(process: ForkServerProcess, seconds: float = 120) -> int:
    """Wait for the end of a process; negative for the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None, f"it did not end within {seconds} seconds"
    return process.exitcode
