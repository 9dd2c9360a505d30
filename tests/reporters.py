"""Reporters that do something at a step, or at every step."""

import signal
from collections.abc import Callable

from imletriton.training.reporter import Reporter


class At(Reporter):
    def __init__(self, at: int | None, action: Callable[[], object]) -> None:
        self.at, self.action = at, action

    def step(self, step: int) -> None:
        if self.at in (None, step):
            self.action()


def interrupt(at: int | None = None, number: int = signal.SIGINT) -> Reporter:
    """A reporter that sends this process a signal."""
    return At(at, lambda: signal.raise_signal(number))
