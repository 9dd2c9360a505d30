"""The tables at the end of `make gpu`: what passed, and measured values beside predicted ones."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 130
Result = dict[str, Any]


def show(paths: list[Path]) -> int:
    """Print the tables of some JSON files, and write them beside each.

    Returns:
        The exit code: 1 if an item failed or was not run to its end, 2 if there are no files.
    """
    if not paths:
        print("No JSON files of `make gpu` are there.")
        return 2
    failed = False
    for path in paths:
        stage = json.loads(path.read_text())
        failed |= any(item["status"] not in ("ok", "skipped") for item in stage["items"])
        text = summary(stage)
        path.with_suffix(".txt").write_text(text)
        print(f"{text}{path} and .txt", flush=True)
    return 1 if failed else 0


def summary(stage: Result) -> str:
    """The tables of a stage as text."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    console.rule(f"Stage {stage['stage']}, {stage['title']}: {stage['device']}, {stage['date']}, {stage['commit']}")
    for table in tables(stage["items"]):
        console.print(table)
    console.print(f"{stage['seconds']:.0f} of {stage['limit_s']:.0f} s.")
    return text.getvalue()


def tables(items: list[Result]) -> Iterator[Table | str]:
    """The tables of a stage that have something to show."""
    results = [item.get("result", {}) for item in items]
    yield statuses(items)
    if tests := {name: test for result in results for name, test in result.get("tests", {}).items()}:
        yield from of_tests(tests)
    if checks := {name: check for result in results for name, check in result.get("checks", {}).items()}:
        yield of_checks(checks)
    if rows := [row for result in results for row in result.get("rows", [])]:
        yield measured(rows)
    for item in items:
        if kernels := item.get("result", {}).get("kernels"):
            yield of_kernels(item["name"], kernels)
    if tiles := {name: tile for result in results for name, tile in result.get("tiles", {}).items()}:
        yield of_tiles(tiles)
    if bench := [row for result in results for row in result.get("bench", [])]:
        yield of_peers(bench)
    if counters := [row for result in results for row in result.get("counters", [])]:
        yield of_counters(counters)
    if memory := [(i["name"], i["result"]["peak_mb"]) for i in items if "peak_mb" in i.get("result", {})]:
        most = max(memory, key=lambda pair: pair[1])
        yield f"Peak memory of a process: {most[1]:,} MiB ({most[0]})."


def statuses(items: list[Result]) -> Table | str:
    """How the items ended, and the reasons of those that did not end well."""
    counts = {status: sum(item["status"] == status for item in items) for status in ("ok", "failed", "skipped")}
    counts["unfinished"] = len(items) - sum(counts.values())
    title = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    table = table_of(f"{len(items)} items: {title}", "item", "status", "s", "why")
    for item in items:
        if item["status"] != "ok":
            table.add_row(item["name"], item["status"], f"{item.get('seconds', 0):.0f}", str(item.get("why", "")))
    return table if table.row_count else f"{table.title}."


def of_tests(tests: Result) -> Iterator[Table | str]:
    """How many tests passed, and the last line of each that did not."""
    outcomes = [test["outcome"] for test in tests.values()]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
    table = table_of(f"{len(tests)} tests: {counts}", "test", "outcome", "last line")
    for name, test in tests.items():
        if test["outcome"] in ("failed", "died"):
            table.add_row(name, test["outcome"], (test.get("lines") or [""])[-1])
    yield table if table.row_count else f"{table.title}."


def of_checks(checks: Result) -> Table:
    """Each check against float64."""
    table = table_of("Checks against float64", "check", "s", "found")
    for name, check in checks.items():
        table.add_row(name, f"{check['seconds']:.2f}", check["wrong"] or "agrees")
    return table


def measured(rows: list[Result]) -> Table:
    """Measured and predicted values; the ratio is to the middle of a prediction."""
    table = table_of("Measured and predicted", "", "measured", "", "predicted", "ratio")
    for row in rows:
        predicted = row["predicted"]
        middle = sum(predicted) / 2 if predicted else None
        low_high = "" if predicted is None else " to ".join(f"{v:g}" for v in dict.fromkeys(predicted))
        ratio = f"{row['measured'] / middle:.2f}" if middle else ""
        table.add_row(row["what"], number(row["measured"]), row["unit"], low_high, ratio)
    return table


def of_kernels(name: str, kernels: list[Result]) -> Table:
    """What takes the most time, for one repetition of the work."""
    table = table_of(f"{name}: what takes the most time", "kernel", "calls", "us", "share")
    for kernel in kernels:
        short = kernel["kernel"] if len(kernel["kernel"]) <= 85 else f"{kernel['kernel'][:82]}..."
        table.add_row(short, f"{kernel['calls']:.1f}", number(kernel["us"]), f"{kernel['share']:.1%}")
    return table


def of_tiles(tiles: Result) -> Table:
    """Each tile, and the microseconds of each kernel with it."""
    table = table_of("Tiles tried, us", "tile", "shape", "scan", "decide", "refine", "all, on the GPU")
    for tile, shapes in tiles.items():
        for shape, times in shapes.items():
            cells = [number(times.get(name)) for name in ("scan", "decide", "refine", "all, on the GPU")]
            table.add_row(tile, shape, *cells)
    return table


def of_peers(rows: list[Result]) -> Table:
    """The search beside other libraries."""
    table = table_of("Nearest neighbours, beside others", "method", "shape", "data", "ms", "of peak", "found")
    for row in rows:
        shape = " x ".join(f"{size:,}" for size in row["shape"])
        if row["why"] and row["seconds"] is None:
            table.add_row(row["method"], shape, row["data"], row["why"])
            continue
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
        found = "" if row["nearest"] is None else f"{row['nearest']:.2%}"
        table.add_row(row["method"], shape, row["data"], number(1e3 * row["seconds"]), share, found)
    return table


def of_counters(rows: list[Result]) -> Table:
    """The counters that ncu read, one column a launch; stall reasons below 0.1 are left out."""
    names = [name for name in rows[0] if name != "kernel"]
    table = table_of("ncu", "counter", *(row["kernel"].replace("_kernel", "") for row in rows))
    for name in names:
        values = [row.get(name, "") for row in rows]
        if "issue_stalled" in name and all(
            value in ("", "0") or float(value.replace(",", "")) < 0.1 for value in values
        ):
            continue
        table.add_row(name.replace("smsp__average_warps_issue_", "").replace("_per_issue_active.ratio", ""), *values)
    return table


def table_of(title: str, *columns: str) -> Table:
    """Make an empty table. Columns are numbers except the first one and those with words."""
    words = {"status", "why", "outcome", "last line", "found", "shape", "data", "kernel", "item", "test", "check"}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for k, column in enumerate(columns):
        left = k == 0 or column in words
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    return table


def number(value: float | None) -> str:
    """Format a number with about three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
