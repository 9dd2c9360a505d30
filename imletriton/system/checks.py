"""Checks of devices, numbers, folders and packages that do not need PyTorch, which takes seconds to import."""

import importlib.util
import re
import tempfile
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


def check_writable(folder: Path, path: Path | str, mend: str) -> None:
    """Check that a folder can be created and written to, without leaving anything in it.

    Args:
        folder: The folder; it need not exist.
        path: What the message names.
        mend: What the message tells the user to do.

    Raises:
        InputError: The folder cannot be created or written to.
    """
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):  # which has no name there, so that a kill leaves nothing
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {mend}.") from error


def check_extra(package: str, extra: str) -> None:
    """Check that a package is installed which only one of imletriton's extras needs.

    Raises:
        InputError: It is not.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f'This needs {package}, which is not installed: `pip install "imletriton[{extra}]"`.')
