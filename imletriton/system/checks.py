"""Checks of devices, numbers, folders and packages that do not need PyTorch, which takes seconds to import."""

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
    """Check the name of a device; None stands for the default one.

    Raises:
        InputError: It is neither cuda nor cpu, with a number or without.
    """
    if device is not None and not re.fullmatch(r"(cpu|cuda)(:(0|[1-9]\d?))?", str(device)):
        raise InputError(f"`device` {str(device)!r} is not known: use cuda or cpu.")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Check a parameter that is a whole number.

    Raises:
        InputError: It is less than `least` or more than `most`.
    """
    if not least <= value <= most:
        raise InputError(f"`{name}` must be from {least} to {most}, not {shown(value)}.")


@contextlib.contextmanager
def writing(path: Path | str, mend: str) -> Iterator[None]:
    """A context that writes a file or a folder.

    Args:
        path: What the message names.
        mend: What the message tells the user to do.

    Raises:
        InputError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {mend}.") from error


def check_writable(folder: Path, path: Path | str, mend: str) -> None:
    """Check that a folder can be created and written to, without leaving anything in it.

    Args:
        folder: The folder; it need not exist.
        path: What the message names.
        mend: What the message tells the user to do.

    Raises:
        InputError: The folder cannot be created or written to.
    """
    with writing(path, mend):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):  # has no name there, so that a kill leaves nothing behind
            pass


def check_new_folder(folder: Path, parameter: str) -> None:
    """Check that a folder is new or empty, and can be written.

    Args:
        folder: The folder.
        parameter: What the function that was given it calls it.

    Raises:
        InputError: It holds something, or cannot be written.
    """
    mend = f"choose a new or an empty one with `{parameter}=DIR`"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: {mend}.")
    check_writable(folder, folder, mend)


def check_extra(package: str, extra: str) -> None:
    """Raise InputError unless a package is installed that only one of imletriton's extras needs."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f'This needs {package}, which is not installed: `pip install "imletriton[{extra}]"`.')
