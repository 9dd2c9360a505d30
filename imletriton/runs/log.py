"""The log of a run while it trains: log.jsonl, and the TensorBoard events beside it."""

import contextlib
import json
import threading
from collections.abc import Iterator

from imletriton.runs.run import Run, write_whole
from imletriton.runs.schema import LogRecord


class RunLog:
    """Writes log.jsonl and the TensorBoard events of a run.

    Lines past the step that a run resumes from are removed first.

    Args:
        run: The run.
        step: The step that training starts from; 0 for a new run.
        writes: Whether this process writes at all; of several processes, one does.
    """

    def __init__(self, run: Run, step: int, writes: bool) -> None:
        self.run, self.step, self.writes = run, step, writes
        self.opened = contextlib.ExitStack()

    def __enter__(self) -> "RunLog":
        if not self.writes:
            return self
        from torch.utils.tensorboard import SummaryWriter

        path = self.run.log_file
        kept = "".join(_line(record) for record in self.run.log() if record.step <= self.step)
        write_whole(path, lambda file: file.write_text(kept))
        with contextlib.ExitStack() as stack:
            stack.enter_context(_no_tracebacks_of_tensorboard())
            self.file = stack.enter_context(path.open("a", buffering=1))
            self.board = stack.enter_context(SummaryWriter(str(self.run.path), purge_step=self.step + 1))
            self.opened = stack.pop_all()
        return self

    def write(self, record: LogRecord) -> None:
        """Append a line, and each of its numbers to TensorBoard's events."""
        if not self.writes:
            return
        self.file.write(_line(record))
        for key, value in record.to_json().items():
            if key != "step" and value is not None:
                self.board.add_scalar(key, value, record.step)

    def __exit__(self, *exception: object) -> None:
        self.opened.close()


@contextlib.contextmanager
def _no_tracebacks_of_tensorboard() -> Iterator[None]:
    """Leave out what Python prints where TensorBoard's thread fails: whoever writes the next number gets that error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _line(record: LogRecord) -> str:
    return json.dumps(record.to_json()) + "\n"
