"""Every configuration that can be launched compiles for the GPUs it is meant for: no GPU is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {
    "hopper": 227 * 1024,
    "ampere": 163 * 1024,
    "small": 48 * 1024,
    "": 48 * 1024,
}  # bytes a program may take
# Triton builds a kernel anew for each property of a number that it specialises on, such as being a multiple of 16.
COUNTS = {"M", "N", "num_groups", "offset", "b", "first", "last"}
PRODUCTS = {80: "mma.sync", 86: "mma.sync", 120: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def test_every_configuration_builds_fits_and_uses_tensor_cores(tmp_path: Path) -> None:
    script = Path(__file__).with_name("build_kernels.py")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = [json.loads(line) for line in done.stdout.splitlines()]
    blocks = "small_block", "small_block_map_gradients", "small_block_weight_gradients"
    kernels = "rounding", "scan", "refine", "decide", "unit_sketch", *blocks
    assert {(b["kernel"], b["arch"]) for b in built} == {(f"{k}_kernel", arch) for k in kernels for arch in PRODUCTS}
    for b in built:
        assert b["spilled"] == 0, b
        assert b["registers"] > 16, b  # an empty shell would need fewer
        assert b["shared"] <= SHARED_MEMORY[b["table"]], b
        if b["kernel"] != "unit_sketch_kernel":
            assert set(b["unspecialised"]) == COUNTS & set(b["numbers"]), b
        if b["kernel"] in ("scan_kernel", "refine_kernel"):
            assert PRODUCTS[b["arch"]] in b["products"], b
        if b["kernel"] in {f"{block}_kernel" for block in blocks}:
            assert b["products"], b
