"""Read the JSON files of a run, which may be damaged."""

import errno
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from imletriton.errors import InputError, notice

T = TypeVar("T")


class Damaged(InputError):  # noqa: N818  # said of a file, as `is_locked` of a run
    """A file is not as it was written.

    Args:
        what: Which file is damaged and how, the first half of a sentence.
        mend: What the user can do about it, the second half.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}: {mend}.")
        self.what = what


def read_json(path: Path, kind: type[T], mend: str) -> T:
    """Read a JSON file.

    Args:
        path: The file.
        kind: The type of its content: one of `schema`, or dict[str, Any] for any object.
        mend: What the user can do about damage; see `Damaged`.

    Raises:
        Damaged: It cannot be read, is not JSON in UTF-8, or has content of another type.
    """
    try:
        return TypeAdapter(kind).validate_json(regular(path).read_bytes())
    except OSError as error:
        reason = str(error.strerror)
    except ValidationError as error:
        reason = why(error)
    raise Damaged(f"{path} is damaged ({reason})", mend)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file with a JSON value of this type on each line; nothing where there is no file.

    Damaged lines, and a file that cannot be read, are left out with a notice.
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
    """Return the path unless it is a folder, or a pipe or device, whose reading might never end: then raise OSError."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path


def why(error: ValidationError) -> str:
    """The first fault that pydantic found, in a few words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"].removeprefix("Value error, ")])
