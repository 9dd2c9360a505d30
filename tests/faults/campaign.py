"""The whole campaign (make faults): kills, stops, damage, full disks and fuzzed inputs, counted in a table.

Failures are printed as they are found, and can be had again by the case that is named (--only) and the seed.
"""

import argparse
import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import damage
import full_disks
import fuzzing
import harness
from kills import Kills
from rich.console import Console
from rich.progress import Progress

TABLE = Path(__file__).parent / "README.md"
KILLS = {"fit": 240, "gen": 200, "eval": 60, "show": 60, "report": 60, "data get": 200}  # cases, of up to five kills
STOPS, DISKS, INPUTS = 60, 40, 24_000  # cases of each kind, and inputs


class Task(NamedTuple):
    """A case: its row in the table, and what tells it from others in that row."""

    row: str
    case: tuple[str | int, ...]


class Result(NamedTuple):
    """How often the fault was made in a case, and what was wrong."""

    count: int
    problems: list[str]


ROWS = {  # of the table, with what is counted
    "killed": "kills",
    "asked to stop": "signals",
    "damaged": "damaged files, each met by one command",
    "full disk": "disks",
    "fuzzed": "inputs",
}


def tasks(share: float, seed: int) -> list[Task]:
    """The cases of a campaign, or a share of each kind of them."""

    def numbers(count: int, least: int = 1) -> range:
        return range(seed * 10**6, seed * 10**6 + max(least, round(share * count)))

    # Kills are slow: of a small share of them, only the commands with the most cases have one.
    found = [Task(f"killed: {name}", (name, k)) for name, count in KILLS.items() for k in numbers(count, least=0)]
    found += [Task("asked to stop: fit", (k,)) for k in numbers(STOPS)]
    for file, kind, name in damage.cases()[:: max(1, round(1 / share))]:
        row = Path(file).name if "." in file else "folders"
        found.append(Task(f"damaged: {row}", (seed, file, kind, name)))
    found += [Task("full disk: " + name, (name, k)) for name in harness.COMMANDS for k in numbers(DISKS)]
    for kind, count, number in fuzzing.batches(round(share * INPUTS)):
        found.append(Task("fuzzed: " + kind.name, (kind.__name__, count, seed * 10**6 + number)))  # type: ignore[attr-defined]
    return found


@functools.cache
def kills_of(base: Path) -> Kills:
    return Kills(base)


def perform(base: Path, task: Task) -> Result:
    """Do a case in a worker's own copy of the runs."""
    own = base.with_name(f"{base.name}-{os.getpid()}")
    if not own.exists():
        shutil.copytree(base, own)
    kind, case = task.row.partition(":")[0], task.case
    if kind in ("killed", "asked to stop"):
        kills = kills_of(own)
        before = kills.kills
        problems = kills.case(*case) if kind == "killed" else kills.stop(*case)  # type: ignore[arg-type]
        return Result(kills.kills - before, problems)
    if kind == "fuzzed":
        name, count, number = case
        return Result(*fuzzing.case(own, getattr(fuzzing, str(name)), int(count), int(number)))
    check = damage.case if kind == "damaged" else full_disks.case
    return Result(1, check(own, *case))  # type: ignore[arg-type]


def totals(counts: dict[str, Counter[str]], options: argparse.Namespace, seconds: float) -> str:
    """The table of the page, in Markdown."""
    lines = ["| fault | cases | | failures |", "|---|---|---|---|"]
    for kind, counted in ROWS.items():
        total = sum((count for row, count in counts.items() if row.startswith(kind)), Counter[str]())
        lines.append(f"| {kind} | {total['cases']:,} | {total['count']:,} {counted} | {total['failures']} |")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    share = "" if options.share == 1 else f" {options.share:.0%} of the cases, evenly spread."
    when = f"seed {options.seed}, {seconds / 60:.0f} minutes, {time.strftime('%Y-%m-%d')}"
    return "\n".join([*lines, "", f"Commit {commit.stdout.strip()}, {when}.{share}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, from 0 to 1")
    parser.add_argument("--only", default="", help="rows of the table that begin so, such as 'damaged: log'")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [task for task in tasks(options.share, options.seed) if task.row.startswith(options.only)]
    counts, began = defaultdict[str, Counter[str]](Counter), time.monotonic()
    for task in chosen:
        counts[task.row].update(cases=0)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        base = Path(place) / "runs"
        harness.make_runs(base)
        fork = multiprocessing.get_context("fork")
        with (
            Progress(*Progress.get_default_columns(), console=console) as bar,
            ProcessPoolExecutor(options.workers, mp_context=fork) as workers,
        ):
            shown = bar.add_task("cases", total=len(chosen))
            doing = {workers.submit(perform, base, task): task for task in chosen}
            for done in as_completed(doing):
                task, result = doing[done], done.result()
                counts[task.row].update(cases=1, count=result.count, failures=bool(result.problems))
                for problem in result.problems:
                    console.print(f"FAILED {task.row} {task.case}: {problem}")
                bar.advance(shown)
                done_now = sum(count["cases"] for count in counts.values())
                if not console.is_terminal and done_now % 100 == 0:
                    console.print(f"{done_now} of {len(chosen)} cases after {time.monotonic() - began:.0f} s")
    for row, count in counts.items():
        print(f"{row}: {count['cases']:,} cases, {count['failures']} failures")
    text = totals(counts, options, time.monotonic() - began)
    print(text)
    if options.share >= 0.2 and not options.only:
        head = TABLE.read_text().partition("<!-- table -->")[0]
        TABLE.write_text(f"{head}<!-- table -->\n\n{text}\n")
    return int(any(count["failures"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
