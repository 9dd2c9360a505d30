"""Progress callbacks: how commands report what they are doing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever shows a training should not have to wait for PyTorch first
    from imletriton.runs.run import Run
    from imletriton.runs.schema import LogRecord
    from imletriton.training.trainer import Trainer

Progress = Callable[[str, int, int], None]  # the name of the work, how much is done, how much there is in all


def silent(name: str, done: int, total: int) -> None:
    """A Progress that reports nothing."""


class Reporter:
    """Callbacks of `imletriton.fit`, which do nothing. Override those that you want."""

    def pictures(self, done: int, total: int) -> None:
        """`done` of the `total` pictures are decoded."""

    def started(self, run: "Run", trainer: "Trainer", total: int) -> None:
        """Training is about to start, or to resume, and will do `total` steps in all."""

    def note(self, text: str) -> None:
        """A sentence for the user."""

    def pool(self, done: int, total: int) -> None:
        """`done` of the pool's `total` samples exist."""

    def fid(self, done: int, total: int) -> None:
        """`done` of the `total` samples for a FID have been measured."""

    def step(self, step: int) -> None:
        """A training step is done."""

    def total(self, total: int) -> None:
        """The newest estimate of how many steps there will be in all, where a deadline decides on that."""

    def distances(self, record: "LogRecord") -> None:
        """The distances between random samples, data points and held-out pictures were measured."""

    def log(self, record: "LogRecord") -> None:
        """A line was added to log.jsonl."""
