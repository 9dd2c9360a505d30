"""What commands tell while they work, and whom."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever shows a training should not have to wait for PyTorch first
    from imletriton.runs.run import Run
    from imletriton.runs.schema import LogRecord
    from imletriton.training.trainer import Trainer

Progress = Callable[[str, int, int], None]  # the name of the work, how much of it is done, how much there is


def silent(name: str, done: int, total: int) -> None:
    """The Progress that tells nobody."""


class Reporter:
    """Is told what a fit does as it goes. Override the methods whose news you want to hear."""

    def pictures(self, done: int, total: int) -> None:
        """So many of the data set's pictures are decoded."""

    def started(self, run: "Run", trainer: "Trainer", total: int) -> None:
        """Training is about to begin, or to go on, towards `total` steps."""

    def note(self, text: str) -> None:
        """Something happened that the user should know."""

    def pool(self, done: int, total: int) -> None:
        """So many of a pool's samples exist."""

    def fid(self, done: int, total: int) -> None:
        """So many of the samples for a FID measurement have been looked at."""

    def step(self, step: int) -> None:
        """A training step is done."""

    def total(self, total: int) -> None:
        """There will be so many steps in all: time decides on that, and this is the newest estimate."""

    def distances(self, record: "LogRecord") -> None:
        """The distances between random samples, data points and held-out pictures were measured."""

    def log(self, record: "LogRecord") -> None:
        """A line was added to the log."""
