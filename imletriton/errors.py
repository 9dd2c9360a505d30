"""Exceptions that end a command early, and notices, which do not. Each message is one sentence for the user."""

import difflib
import errno
import functools
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# In the messages of PyTorch, C++, Python's threads and the loader of shared libraries.
MEMORY_RAN_OUT = "can't allocate memory|not enough memory|bad_alloc|start new thread|failed to map segment"

LONGEST = 2000  # characters of a message


class _Message(Exception):  # noqa: N818
    """An exception whose message is shown to the user, without control characters, which a file's name may have."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(_Message):
    """Wrong use or bad input. The message names the file or key, and the remedy; the exit code is 2.

    Messages name parameters as Python code in backticks, such as `out=DIR`, which the command line replaces by flags.
    """


class Fault(_Message):
    """The work could not go on, but not because of the input. The exit code is 1."""


class Interrupted(Exception):  # noqa: N818
    """Training was stopped by a signal; it has been saved and can be resumed. The exit code is 130.

    Args:
        run: The run's folder.
        step: The step that was saved.
        device: The type of the device, cuda or cpu, if it must be named to resume on it; None for the default one.
    """

    def __init__(self, run: Path, step: int, device: str | None = None) -> None:
        super().__init__(f"{run} was stopped at step {step} and saved.")
        self.run, self.step, self.device = run, step, device


def out_of_memory_fault(error: BaseException) -> Fault | None:
    """Return a Fault with a remedy if an exception, or its cause, says that memory ran out; otherwise None.

    PyTorch, which may not be loaded, has a type of its own for a GPU's memory, and RuntimeError for the machine's.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if (
            isinstance(cause, MemoryError)
            or type(cause).__name__ == "OutOfMemoryError"
            or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
            or (isinstance(cause, RuntimeError | ImportError) and re.search(MEMORY_RAN_OUT, text))
        ):
            wanted = re.search(r"allocate ([\d.]+ \w+)", text)
            when = f" when {wanted[1]} more were needed" if wanted else ""
            mend = "close other programs, or train with a lower train.batch_size, generator.width or selection.pool"
            return Fault(f"Memory ran out{when}: {mend}.")
        cause = cause.__cause__
    return None


def explain_out_of_memory(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function raise the Fault of `out_of_memory_fault` if memory runs out in it."""

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **more: P.kwargs) -> T:
        try:
            return function(*arguments, **more)
        except Exception as error:
            if (fault := out_of_memory_fault(error)) is None:
                raise
        raise fault  # out here, where the memory is no longer held

    return wrapped


class Notice(UserWarning):
    """Something that the user should know, although the work goes on."""


def notice(message: str) -> None:
    """Warn the user. The command line prints each message once."""
    warnings.warn(printable(message), Notice, stacklevel=3)


def printable(text: str) -> str:
    """Escape characters that cannot be printed as Python does, and leave out the middle of a long text."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: suggests the most similar known name, or lists all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
