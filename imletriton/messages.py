"""The library's messages in the words of the command line: flags for parameters, notices once, how to resume."""

import contextlib
import re
import shlex
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from imletriton.console import errors
from imletriton.errors import Interrupted, Notice
from imletriton.system import torchrun

SPECIAL = {"resume=True": "--resume", "pretrained=False": "--weights random"}


def flags_of(app: typer.Typer) -> dict[str, str]:
    """The flags of all commands, by the names of their parameters: {"run_dir": "--run-dir"}."""
    flags: dict[str, str] = {}
    groups: list[Any] = [typer.main.get_command(app)]
    for group in groups:  # to which its own commands are added
        groups += getattr(group, "commands", {}).values()
        flags |= {param.name: max(param.opts, key=len) for param in group.params if param.param_type_name == "option"}
    return flags


def name_flags(message: str, app: typer.Typer) -> str:
    """Put flags in the place of the parameters that a message of the library names as Python code.

    `n` becomes --n, `out=DIR` becomes --out DIR, `data.source=DIR` becomes --set data.source=DIR; other code in
    backticks stays as it is.
    """
    flags = flags_of(app)

    def flag(code: re.Match[str]) -> str:
        name, value = code["name"], (code["value"] or "").strip("'\"")
        if code["code"] in SPECIAL:
            return SPECIAL[code["code"]]
        if re.match(r"(data|generator|distance|selection|train|log)\.", name):
            return f"--set {name}={value or '...'}"
        return f"{flags[name]} {value}".rstrip() if name in flags else code[0]

    return re.sub(r"`(?P<code>(?P<name>[a-z_.]+)(=(?P<value>[^`\s]+))?)`", flag, message)


@contextlib.contextmanager
def printing_notices(app: typer.Typer) -> Iterator[None]:
    """Print the library's notices, each once; other warnings stay as they are."""
    show, told = warnings.showwarning, set[str]()  # Python forgets what it has shown when anyone changes its filters

    def print_notice(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, Notice):
            show(message, category, *place, **more)
        elif torchrun.is_first() and str(message) not in told:
            told.add(str(message))
            errors.print(f"warning: {name_flags(str(message), app)}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = print_notice
        yield


def how_to_resume(stopped: Interrupted) -> str:
    """The command that resumes a run, by this program alone or by torchrun as it was started."""
    program = "imletriton"
    processes, machines = torchrun.processes(), torchrun.machines()
    if processes > 1:
        several = f"--nnodes={machines} --rdzv-backend=... --rdzv-endpoint=... " if machines > 1 else ""
        program = f"torchrun {several}--nproc-per-node={processes // machines} -m imletriton"
    device = f" --device {stopped.device}" if stopped.device else ""
    return f"{program} fit --resume {shlex.quote(str(stopped.run))}{device}"
