"""All methods on the same tensors in the same process: one table for each shape and kind of data."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import extra_memory, peak_flops, seconds, times
from benchmarks.nearest.methods import METHODS, Method, Missing

SHAPES = [(389, 10_000, 800), (100, 10_000, 1024), (1000, 50_000, 512), (4096, 65_536, 128)]
LARGE = [(65_536, 65_536, 512), (389, 1_000_000, 800)]  # where there is a GPU
PATIENCE = 5.0  # seconds; longer calls are timed once
SETS = 3  # of tensors, used in turns


@dataclass(frozen=True)
class Row:
    """The result of one method for one shape. `why` is the reason if the method could not be measured."""

    method: str
    shape: tuple[int, int, int]
    data: str
    why: str = ""
    seconds: float | None = None
    spread: float | None = None
    calls: int | None = None
    over_float32_product: float | None = None
    over_bfloat16_product: float | None = None
    share_of_peak: float | None = None
    extra_bytes: int | None = None
    nearest: float | None = None  # share of queries that got the nearest sample, to 1e-6
    distance_error: float | None = None  # greatest relative error of the squared distances


def shape_of(text: str) -> tuple[int, int, int]:
    """Read a shape as the command line gives it, such as "389,10000,800"."""
    n, m, d = (int(number) for number in text.split(","))
    return n, m, d


def normal(k: int, d: int, device: torch.device) -> Tensor:
    return torch.randn(k, d, device=device)


def with_offset(k: int, d: int, device: torch.device) -> Tensor:
    """Draw vectors that are close to each other and far from the origin."""
    return 1e4 + 1e-2 * torch.randn(k, d, device=device)


def collapsed(k: int, d: int, device: torch.device) -> Tensor:
    """Draw vectors that are nearly equal, as samples of an untrained generator are, except for the first four."""
    values = 1 + 1e-3 * torch.randn(k, d, device=device)
    values[:4] = torch.randn(4, d, device=device)
    return values


DATA: dict[str, Callable[[int, int, torch.device], Tensor]] = {
    "normal": normal,
    "offset 10^4, distances 10^-2": with_offset,
    "samples nearly equal": collapsed,
}


def run(device: torch.device, shapes: list[tuple[int, int, int]], console: Console) -> dict[str, Any]:
    """Measure all methods on all shapes and print tables. Returns the values for the JSON file."""
    peak = {str(t).removeprefix("torch."): peak_flops(device, t) for t in (torch.float32, torch.bfloat16)}
    ready: dict[str, Method] = {}
    missing: dict[str, str] = {}
    for name, make in METHODS.items():
        try:
            ready[name] = make(device)
        except Missing as why:
            missing[name] = str(why)
    rows = []
    for shape in shapes:
        for data in DATA if shape == SHAPES[0] else ["normal"]:
            torch.manual_seed(0)
            part = of_shape(shape, data, ready, device, peak["bfloat16"])
            part += [Row(name, shape, data, why) for name, why in missing.items() if data == "normal"]
            console.print(table(part, shape, data))
            rows += part
    return {"peak_flops": peak, "rows": [asdict(row) for row in rows]}


def of_shape(
    shape: tuple[int, int, int], data: str, ready: dict[str, Method], device: torch.device, peak: float
) -> list[Row]:
    n, m, d = shape
    sets = [(DATA[data](n, d, device), DATA[data](m, d, device)) for _ in range(SETS)]
    x, y = sets[0]
    rounded = [(x.bfloat16(), y.bfloat16()) for x, y in sets]
    least = least_sq_distances(x, y)
    works: dict[str, Callable[[int], Any]] = {
        "float32 product": lambda k: sets[k % SETS][0] @ sets[k % SETS][1].T,
        "bfloat16 product": lambda k: rounded[k % SETS][0] @ rounded[k % SETS][1].T,
    }
    held: dict[str, Row] = {}
    for name, method in ready.items():
        try:
            result = method(x, y)  # compiles
            extra = extra_memory(lambda method=method: method(x, y), device)  # type: ignore[misc]
            share, error = judge(result, x, y, least)
            held[name] = Row(name, shape, data, extra_bytes=extra, nearest=share, distance_error=error)
            if (taken := seconds(lambda method=method: method(x, y), device)) < PATIENCE:  # type: ignore[misc]
                works[name] = lambda k, method=method: method(*sets[k % SETS])  # type: ignore[misc]
            else:
                held[name] = replace(held[name], why=f"{taken:.0f} s", seconds=taken, calls=1)
        except Exception as why:  # other libraries may fail in any way: the table shows it
            if name.startswith("imletriton"):
                raise
            held[name] = Row(name, shape, data, f"{type(why).__name__}: {str(why).strip().splitlines()[0][:60]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    taken_by = times(works, device)
    rows = []
    for name in [*list(works)[:2], *held]:
        row = held.get(name, Row(name, shape, data))
        if name in taken_by:
            t = taken_by[name]
            row = replace(
                row,
                seconds=t.median,
                spread=t.spread,
                calls=t.calls,
                over_float32_product=t.median / taken_by["float32 product"].median,
                over_bfloat16_product=t.median / taken_by["bfloat16 product"].median,
                share_of_peak=2 * n * m * d / t.median / peak,
            )
        rows.append(row)
    return rows


def least_sq_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute the exact least squared distances, float64 [n].

    A matmul of the centred vectors in float64 finds eight candidates for each query; differences decide among them.
    """
    centre = x.double().mean(0)
    wide = x.double() - centre
    least = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for part in y.split(8192):
        shifted = part.double() - centre
        for rows in torch.arange(len(x), device=x.device).split(16384):
            rank = torch.addmm(shifted.square().sum(1), wide[rows], shifted.T, alpha=-2)
            for index in rank.topk(min(8, len(part)), largest=False).indices.T:
                sq = (wide[rows] - shifted[index]).square().sum(1)
                least[rows] = torch.minimum(least[rows], sq)
    return least


def judge(result: tuple[Tensor | None, Tensor], x: Tensor, y: Tensor, least: Tensor) -> tuple[float, float | None]:
    """Return the share of queries whose nearest sample was found, and the greatest relative error of sq_distance."""
    sq, index = result
    pairs = zip(x.split(8192), index.long().split(8192), strict=True)
    chosen = torch.cat([(a.double() - y[i].double()).square().sum(1) for a, i in pairs])
    right = (chosen <= least * (1 + 2e-6)).double().mean()
    error = None if sq is None else float(((sq.double() - chosen).abs() / chosen).max())
    return float(right), error


def table(rows: list[Row], shape: tuple[int, int, int], data: str) -> Table:
    n, m, d = shape
    result = Table(title=f"{n:,} queries, {m:,} samples, {d:,} dimensions: {data}", title_justify="left")
    for name, justify in [("method", "left"), ("time", "right"), ("spread", "right"), ("/ float32 product", "right")]:
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ["/ bfloat16", "of peak", "memory", "nearest found", "distance error"]:
        result.add_column(name, justify="right")
    for r in rows:
        if r.why:
            result.add_row(r.method, r.why, *[""] * 7, style="dim")
            continue
        assert r.seconds is not None
        result.add_row(
            r.method,
            f"{r.seconds * 1e3:.3g} ms",
            shown(r.spread, lambda v: f"{100 * v:.0f} %"),
            shown(r.over_float32_product, lambda v: f"{v:.2f}"),
            shown(r.over_bfloat16_product, lambda v: f"{v:.2f}"),
            shown(r.share_of_peak, lambda v: f"{100 * v:.0f} %"),
            shown(r.extra_bytes, lambda v: f"{v / 2**20:,.0f} MiB"),
            shown(r.nearest, lambda v: "all" if v == 1 else f"{100 * min(v, 0.9999):.2f} %"),
            shown(r.distance_error, lambda v: f"{v:.0e}"),
            style="bold" if r.method == "imletriton" else "",
        )
    return result


def shown(value: Any, as_text: Callable[[Any], str]) -> str:
    return "" if value is None else as_text(value)
