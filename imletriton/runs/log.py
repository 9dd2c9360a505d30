"""The log of a run: log.jsonl, and trackers that get the same numbers and pictures."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from imletriton.errors import Interrupted, notice
from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord
from imletriton.runs.trackers import TRACKERS, Tracker


class RunLog:
    """Writes log.jsonl and passes its numbers, and pictures, on to trackers.

    Lines after the step that a run resumes from are removed first. A tracker that fails is dropped with a notice, and
    training goes on. Only TensorBoard's failures are raised: its files are in the run's folder, and where they cannot
    be written, checkpoints cannot either.

    Args:
        run: The run.
        step: The step that training starts from; 0 for a new run.
        writes: Whether this process writes; of several processes, one does.
        trackers: Names in TRACKERS.
        config: The recipe as plain values, for trackers that keep it.
    """

    def __init__(self, run: Run, step: int, writes: bool, trackers: Sequence[str], config: Mapping[str, Any]) -> None:
        self.run, self.step, self.writes = run, step, writes
        self.names, self.config = dict.fromkeys(trackers), config
        self.trackers: dict[str, Tracker] = {}
        self.known = step  # the last step that the trackers have already, from before the run was stopped
        self.file: IO[str] | None = None

    def __enter__(self) -> "RunLog":
        if not self.writes:
            return self
        path, before = self.run.log_file, self.run.log()
        kept = "".join(_line(record) for record in before if record.step <= self.step)
        write_whole(path, lambda file: file.write_text(kept))
        self.known = max([self.step, *(record.step for record in before)])
        for name in self.names:
            with self._dropped_if_it_fails(name):
                self.trackers[name] = TRACKERS[name](self.run, self.step, self.config)
        self.file = path.open("a", buffering=1)
        return self

    def write(self, record: LogRecord) -> None:
        """Append a line, and pass its numbers on to the trackers."""
        if self.file is None:
            return
        self.file.write(_line(record))
        values = {key: value for key, value in record.to_json().items() if key != "step" and value is not None}
        self._pass_on(record.step, lambda tracker: tracker.write(record.step, values))

    def picture(self, step: int, name: str, file: Path) -> None:
        """Pass a PNG file on to the trackers."""
        self._pass_on(step, lambda tracker: tracker.picture(step, name, file))

    def _pass_on(self, step: int, call: Callable[[Tracker], None]) -> None:
        """Call each tracker that lacks this step: a resumed run repeats some, which TensorBoard alone has dropped."""
        for name, tracker in [*self.trackers.items()]:
            if name == "tensorboard" or not self.step < step <= self.known:
                with self._dropped_if_it_fails(name):
                    call(tracker)

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if name == "tensorboard":
                raise
            self.trackers.pop(name, None)
            reason = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
            notice(f"Logging to {name} is disabled ({reason}): training goes on, and {self.run.log_file} has the log.")

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        failed = kind is not None and not issubclass(kind, Interrupted)
        try:
            for name, tracker in [*self.trackers.items()]:
                with self._dropped_if_it_fails(name):
                    tracker.close(failed)
        finally:
            if self.file:
                self.file.close()


def _line(record: LogRecord) -> str:
    return json.dumps(record.to_json()) + "\n"
