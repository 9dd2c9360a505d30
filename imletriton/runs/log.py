"""The log of a run: log.jsonl, and the TensorBoard events beside it."""

import json
from typing import Any

from imletriton.runs.run import Run, write_whole


class Log:
    """log.jsonl and the TensorBoard events beside it; lines past the step that a run resumes from are cut off."""

    def __init__(self, run: Run, step: int, writes: bool) -> None:
        self.run, self.step, self.writes = run, step, writes

    def __enter__(self) -> "Log":
        if not self.writes:
            return self
        from torch.utils.tensorboard import SummaryWriter

        path = self.run.log_file
        kept = [json.dumps(line) for line in self.run.log() if line["step"] <= self.step]
        write_whole(path, lambda file: file.write_text("".join(f"{line}\n" for line in kept)))
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(self.run.path), purge_step=self.step + 1)
        return self

    def write(self, record: dict[str, Any]) -> None:
        if not self.writes:
            return
        self.file.write(json.dumps(record) + "\n")
        for key, value in record.items():
            if key != "step" and value is not None:
                self.board.add_scalar(key, value, record["step"])

    def __exit__(self, *exception: object) -> None:
        if self.writes:
            self.file.close()
            self.board.close()
