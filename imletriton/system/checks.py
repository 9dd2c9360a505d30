"""Checks of devices, numbers, folders and packages. Needs no PyTorch, which takes seconds to import."""

import contextlib
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imletriton.errors import InputError
from imletriton.system.registry import shown

if TYPE_CHECKING:
    import torch

MAKE_ROOM = "make room, or choose another folder with `out=DIR`"
MAX_SEED = 2**32 - 1


def check_device(device: "str | torch.device | None") -> None:
    """Raise InputError unless a device is cuda or cpu, with a number or without; None stands for the default one."""
    if device is not None and not re.fullmatch(r"(cpu|cuda)(:(0|[1-9]\d?))?", str(device)):
        raise InputError(f"`device` {str(device)!r} is not known: use cuda or cpu.")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise InputError unless a parameter is a whole number from `least` to `most`."""
    if not least <= value <= most:
        raise InputError(f"`{name}` must be from {least} to {most}, not {shown(value)}.")


@contextlib.contextmanager
def writing(path: Path | str, mend: str) -> Iterator[None]:
    """Raise InputError, with this path and remedy, where writing in this context fails."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {mend}.") from error


def check_writable(folder: Path, path: Path | str, mend: str) -> None:
    """Raise InputError, with this path and remedy, unless a folder can be created and written to; leaves no trace."""
    with writing(path, mend):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):  # has no name there, so that a kill leaves nothing behind
            pass


def check_new_folder(folder: Path, parameter: str) -> None:
    """Raise InputError unless a folder, which the caller knows as `parameter`, is new or empty and can be written."""
    mend = f"choose a new or an empty one with `{parameter}=DIR`"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: {mend}.")
    check_writable(folder, folder, mend)


def check_extra(package: str, extra: str) -> None:
    """Raise InputError unless a package is installed that only one of imletriton's extras needs."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f'This needs {package}, which is not installed: `pip install "imletriton[{extra}]"`.')
