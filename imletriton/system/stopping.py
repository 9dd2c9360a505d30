"""Signals: training stops where its state is complete and can be saved; all other work ends at once."""

import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from imletriton.system import torchrun

if TYPE_CHECKING:  # signals are handled long before PyTorch is loaded
    import torch

    from imletriton.system.distributed import Group

SAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, end of a job, end of a terminal


class StopRequested(Exception):  # noqa: N818
    """Training was asked to stop, and its state is complete and can be saved."""


class StopRequest:
    """A context in which the signals SAVING set a flag that training checks; a second signal takes effect at once.

    SIGHUP stays ignored if it is, as under nohup. The processes of a group stop together, at their next call of
    `check_together`.
    """

    def __init__(self, group: "Group", device: "torch.device") -> None:
        self.group, self.device = group, device
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SAVING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if the flag is set and there is only this process."""
        if self.requested and self.group.size == 1:
            raise StopRequested

    def check_together(self) -> None:
        """Raise StopRequested in all processes if the flag is set in any of them. All processes must call this."""
        if self.group.any(self.requested, self.device):
            raise StopRequested

    def __exit__(self, *exception: object) -> None:
        self._restore()


class Ending:
    """Ends this process at once on one of the signals SAVING, with a sentence on standard error and exit code 130.

    Python's KeyboardInterrupt cannot do that while modules are imported: some swallow it, and then fail because
    something was not loaded.
    """

    def __init__(self) -> None:
        self.sentence = "Stopped."

    def install(self) -> None:
        """Handle the signals from now on, except those that this process ignores.

        Under torchrun, that is Ctrl-C alone: Python's handlers do not run in a process that waits for another one in
        PyTorch, and torchrun must be able to end it by SIGTERM.
        """
        for number in SAVING if torchrun.processes() == 1 else (signal.SIGINT,):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden it
        try:
            os.write(2, f"{show_cursor}\n{self.sentence}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(130)


ending = Ending()  # of this process
