"""Every configuration that can be launched compiles for the GPUs it is meant for: no GPU is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

SHARED_MEMORY = {
    "hopper": 227 * 1024,
    "blackwell": 227 * 1024,
    "ampere": 163 * 1024,
    "small": 48 * 1024,
    "": 48 * 1024,
}  # bytes a program may take
# Triton builds a kernel anew for each property of a number that it specialises on, such as being a multiple of 16.
COUNTS = {"M", "N", "num_groups", "num_tiles", "offset", "top", "total", "step"}
PRODUCTS = {80: "mma.sync", 86: "mma.sync", 120: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def run_builds(cache: Path, *options: str) -> list[Any]:
    """Run benchmarks.builds in a process that compiles kernels instead of interpreting them."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "benchmarks.builds", *options]
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_configuration_builds_fits_and_uses_tensor_cores(tmp_path: Path) -> None:
    built = run_builds(tmp_path)
    kernels = "centre", "scale", "rounding", "scan", "decide", "split", "refine", "within", "unit_sketch"
    assert {(b["kernel"], b["arch"]) for b in built} == {(f"{k}_kernel", arch) for k in kernels for arch in PRODUCTS}
    for b in built:
        assert b["spilled"] == 0, b
        assert b["registers"] > 16, b  # an empty shell would need fewer
        assert b["shared"] <= SHARED_MEMORY[b["table"]], b
        if b["kernel"] != "unit_sketch_kernel":
            assert COUNTS & set(b["numbers"]) <= set(b["unspecialised"]), b
        if b["kernel"].startswith(("scan", "refine", "within")):
            assert PRODUCTS[b["arch"]] in b["products"], b


def test_the_machine_code_for_an_h100_is_as_short_as_it_was(tmp_path: Path) -> None:
    """An epilogue of at most 5 instructions a product for the large tiles; a refinement as dense as the scan is."""
    [counts] = run_builds(tmp_path, "--counts")
    scans = {name: row for name, row in counts.items() if name.startswith("scan")}
    for name, row in scans.items():
        limit = 5 if "128 x" in name else 5.6  # the smallest tile has the fewest products to share what is done once
        assert row["instructions for a product after the loop"] <= limit, counts
    for name, row in counts.items():
        if name.startswith("refine"):
            block_m, group = name.split()[1], name.split()[-1]
            [scan] = [row for other, row in scans.items() if other.startswith(f"scan, {block_m} x {group},")]
            assert row["barriers in a step"] <= 4, counts
            cost, of_scan = (r["instructions for 1,000 multiply-adds"] for r in (row, scan))
            assert cost <= 3.5 * of_scan, counts
