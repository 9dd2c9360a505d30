"""Reads the JSON files of a run, in whatever state they are. Everything that reads JSON does so here."""

import errno
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from imletriton.errors import InputError, notice

T = TypeVar("T")


class Damaged(InputError):
    """A file is not as it was written.

    Args:
        what: What is wrong with which file, as the beginning of a sentence.
        mend: What the user can do about it, as its end.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}.")
        self.what = what


def read_json(path: Path, kind: type[T], mend: str) -> T:
    """Read a JSON file.

    Args:
        path: The file.
        kind: The type of what it must hold: one of `schema`, or dict[str, Any] for any object.
        mend: The end of the sentence that tells of damage.

    Raises:
        Damaged: It cannot be read, is not JSON in UTF-8, or does not hold what it must.
    """
    try:
        return TypeAdapter(kind).validate_json(regular(path).read_bytes())
    except OSError as error:
        reason = str(error.strerror)
    except ValidationError as error:
        reason = why(error)
    raise Damaged(f"{path} is damaged ({reason})", mend)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file with a JSON value on each line; none where there is no file. A notice tells of lines left out.

    Args:
        path: The file.
        kind: The type of what each line must hold. Lines that do not hold it are left out.
    """
    try:
        lines = regular(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        notice(f"{path} is left out, as it cannot be read ({error.strerror}).")
        return []
    adapter, values, damaged = TypeAdapter(kind), [], 0
    for line in filter(bytes.strip, lines):
        try:
            values.append(adapter.validate_json(line))
        except ValidationError:
            damaged += 1
    if damaged:
        notice(f"{path} has damaged lines, which are left out: {damaged} of {damaged + len(values)}.")
    return values


def regular(path: Path) -> Path:
    """Return the path of a file.

    Raises:
        OSError: There is none, or it is a folder, or something like a pipe, which one could read forever.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path


def why(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"].removeprefix("Value error, ")])
