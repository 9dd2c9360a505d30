"""The log of a run while it trains: log.jsonl, and the trackers that are told the same."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from imletriton.errors import Interrupted, notice
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord
from imletriton.runs.trackers import TRACKERS, Tracker


class RunLog:
    """Writes log.jsonl of a run, and tells trackers its numbers and pictures.

    Lines past the step that a run resumes from are removed first. A tracker that fails is told nothing more, which a
    notice says, and training goes on; only TensorBoard's failures are raised, as its files lie in the run's folder,
    and where those cannot be written, neither can checkpoints.

    Args:
        run: The run.
        step: The step that training starts from; 0 for a new run.
        writes: Whether this process writes at all; of several processes, one does.
        trackers: Names in TRACKERS.
        config: The recipe, as plain values, for trackers that keep it.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        writes: bool,
        trackers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.step, self.writes = run, step, writes
        self.names, self.config = dict.fromkeys(trackers), config or {}
        self.trackers: dict[str, Tracker] = {}
        self.told = step  # the last step that the trackers know already, from before the run was stopped
        self.file: IO[str] | None = None

    def __enter__(self) -> "RunLog":
        if not self.writes:
            return self
        path, before = self.run.log_file, self.run.log()
        kept = "".join(_line(record) for record in before if record.step <= self.step)
        write_whole(path, lambda file: file.write_text(kept))
        self.told = max([self.step, *(record.step for record in before)])
        for name in self.names:
            with_name = TRACKERS[name]
            self._guarded(name, lambda: self.trackers.update({name: with_name(self.run, self.step, self.config)}))
        self.file = path.open("a", buffering=1)
        return self

    def write(self, record: LogRecord) -> None:
        """Append a line, and tell the trackers each of its numbers."""
        if self.file is None:
            return
        self.file.write(_line(record))
        values = {key: value for key, value in record.to_json().items() if key != "step" and value is not None}
        self._tell(record.step, lambda tracker: tracker.write(record.step, values))

    def picture(self, step: int, name: str, file: Path) -> None:
        """Tell the trackers a PNG file."""
        self._tell(step, lambda tracker: tracker.picture(step, name, file))

    def _tell(self, step: int, tell: Callable[[Tracker], None]) -> None:
        """Tell all trackers something of a step; TensorBoard has dropped what it knew of the steps that come again."""
        for name, tracker in [*self.trackers.items()]:
            if name == "tensorboard" or not self.step < step <= self.told:
                self._guarded(name, lambda: tell(tracker))

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        """Let a tracker act; one that fails is dropped."""
        try:
            act()
        except Exception as error:
            if name == "tensorboard":
                raise
            self.trackers.pop(name, None)
            reason = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
            notice(
                f"{name} is told nothing more of this run ({reason}): training goes on, and {self.run.log_file} has it."
            )

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        failed = kind is not None and not issubclass(kind, Interrupted)
        try:
            for name, tracker in [*self.trackers.items()]:
                self._guarded(name, lambda: tracker.close(failed))
        finally:
            if self.file:
                self.file.close()


def _line(record: LogRecord) -> str:
    return json.dumps(record.to_json()) + "\n"
