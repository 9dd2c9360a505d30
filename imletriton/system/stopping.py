"""Handle Ctrl-C and SIGTERM so that training stops only where its state is complete and can be saved."""

import signal
import threading
from types import FrameType
from typing import Any

import torch

from imletriton.system.distributed import Group


class StopRequested(Exception):  # noqa: N818
    """The user has asked training to stop; its state is complete and can be saved."""


class StopRequest:
    """A context in which Ctrl-C and SIGTERM set a flag that training checks; a second signal takes effect at once.

    Several processes stop together, at their next call of `check_together`.

    Args:
        group: The processes of the run.
        device: The device of this process.
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
        """Handle a signal: set the flag, and restore the previous handlers for a second signal."""
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        """Restore the signal handlers that were active before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested where the flag is set and there is only this process."""
        if self.requested and self.group.size == 1:
            raise StopRequested

    def check_together(self) -> None:
        """Raise StopRequested in all processes where the flag is set in any of them. All processes must call this."""
        if self.group.any(self.requested, self.device):
            raise StopRequested

    def __exit__(self, *exception: object) -> None:
        self._restore()
