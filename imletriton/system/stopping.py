"""Ctrl-C and SIGTERM, held back until a place where nothing is half-done."""

import signal
import threading
from types import FrameType
from typing import Any

import torch

from imletriton.system.distributed import Group


class StopRequested(Exception):  # noqa: N818
    """The user asked to stop; nothing is half-done."""


class StopRequest:
    """While entered, Ctrl-C and SIGTERM ask to stop at the next safe place; a second one stops at once.

    Several processes stop together: where all of them look.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self.group, self.device = group, device
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested where a stop was asked for and no other process need know."""
        if self.requested and self.group.size == 1:
            raise StopRequested

    def check_together(self) -> None:
        """Raise StopRequested in all processes where one was asked to stop. All must call it."""
        if self.group.any(self.requested, self.device):
            raise StopRequested

    def __exit__(self, *exception: object) -> None:
        self._restore()
