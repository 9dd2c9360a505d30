"""Progress callbacks."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a display of progress need not wait for PyTorch
    from imletriton.runs.run import Run
    from imletriton.runs.schema import LogRecord
    from imletriton.training.trainer import Trainer

Progress = Callable[[str, int, int], None]  # the name of the work, how much of it is done, how much there is


def silent(name: str, done: int, total: int) -> None:
    """Report no progress."""


class Reporter:
    """The callbacks of `fit`, which do nothing. Override those that you need."""

    def pictures(self, done: int, total: int) -> None:
        """So many of the data set's pictures have been decoded."""

    def started(self, run: "Run", trainer: "Trainer", total: int) -> None:
        """Training is about to start or resume, and takes `total` steps in all."""

    def note(self, text: str) -> None:
        """Something happened that the user should know."""

    def pool(self, done: int, total: int) -> None:
        """So many of a pool's samples exist."""

    def fid(self, done: int, total: int) -> None:
        """So many of the samples of a FID measurement have been compared."""

    def step(self, step: int) -> None:
        """A training step is done."""

    def total(self, total: int) -> None:
        """The newest estimate of how many steps there will be in all, where time decides."""

    def distances(self, record: "LogRecord") -> None:
        """The distances between random samples, data points and held-out pictures were measured."""

    def log(self, record: "LogRecord") -> None:
        """A line was added to the log."""
