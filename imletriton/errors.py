"""The ways a command ends early; each carries one sentence that says what to do."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class InputError(Exception):
    """Wrong use or bad input: names the file or key and the mend. The command line exits with 2."""


class Fault(Exception):  # noqa: N818
    """The work could not go on, through nobody's input. The command line exits with 1."""


class Interrupted(Exception):  # noqa: N818
    """Training was stopped from outside, saved, and can be resumed. The command line exits with 130."""

    def __init__(self, run: Path, step: int, device: str) -> None:
        super().__init__(f"{run} was stopped at step {step} and saved.")
        self.run, self.step, self.device = run, step, device


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the known one nearest to it, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
