"""Builds every kernel in every configuration for GPUs that need not be here, and prints what the compiler says.

Run by test_kernels_build.py in a process of its own: Triton either interprets or compiles, never both.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imletriton.kernels import decide, launch, refine, rounding, scan, unit_sketch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = {80: "ampere", 86: "small", 90: "hopper", 100: "hopper", 120: "small"}
TYPES = {"half": "*fp16", "best": "*fp64", "index": "*i64", "loss": "fp32", "one": "fp32", "offset": "i64"}
TYPES |= {"row_shift": "*i32", "sign": "*i8"}
SIZES = {"rows", "columns", "depth", "k", "d", "groups", "x_stride", "y_stride", "row_stride", "half_stride"}
SIZES |= {"channels", "dim", "row", "parts"}
VECTORS = {"x", "y", "vectors", "layer"}
ALIGNED = {"depth", "half_stride", "d", "x_stride", "y_stride", "row_stride", "channels"}


Result = dict[str, object]


def build(
    kernel: object, arch: int, warps: int, stages: int, dtype: str = "fp32", table: str = "", **constants: object
) -> Result:
    """Compile as a launch with aligned, contiguous tensors would."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature, aligned = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = TYPES.get(name.removesuffix("_rows").removesuffix("_columns") if name.startswith("half") else name)
        kind = "i32" if name in SIZES else f"*{dtype}" if name in VECTORS else kind or "*fp32"
        signature[name] = kind
        if kind.startswith("*") or name in ALIGNED:
            aligned[(place,)] = [["tt.divisibility", 16]]
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    built = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        report = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report.stdout + report.stderr))
    return {
        "kernel": kernel.__name__,  # type: ignore[attr-defined]
        "arch": arch,
        "table": table,
        "registers": int(usage["REG"]),
        "spilled": int(usage["STACK"]) + int(usage["LOCAL"]),
        "shared": built.metadata.shared,
        "products": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", built.asm["ptx"]))),
        **constants,
    }


def jobs() -> Iterator[Callable[[], Result]]:
    """Every kernel in every configuration, for every GPU."""
    for arch, table in DEVICES.items():
        for tile in launch.SCAN[table].values():
            sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
            yield partial(build, scan.scan_kernel, arch, tile.warps, tile.stages, **sizes, table=table)
        tile = launch.REFINE[table]
        for group in {tile.columns for tile in launch.SCAN[table].values()}:
            sizes = {"GROUP": group, "ROWS": tile.rows, "COLUMNS": min(group, tile.columns), "DEPTH": tile.depth}
            yield partial(build, refine.refine_kernel, arch, tile.warps, tile.stages, **sizes, table=table)
            for first_only in (True, False):
                sizes = {"GROUP": group, "GROUPS": 512, "DEPTH": decide.DEPTH, "WIDE": decide.AREA // group}
                flags = {"FIRST_ONLY": first_only, "ANY": not first_only}
                yield partial(build, decide.decide_kernel, arch, decide.WARPS, 3, "bf16", **sizes, **flags, table=table)
        for dtype in ("fp32", "fp16", "bf16"):
            for depth in rounding.DEPTHS:
                sizes = {"ROWS": rounding.ROWS, "DEPTH": depth}
                yield partial(build, rounding.rounding_kernel, arch, rounding.WARPS, 3, dtype, **sizes, table=table)
        for dtype in ("fp32", "bf16"):
            for positions, channels in ((16, 64), (1, 512)):  # of VGG16's first and last layers
                sizes = {"ROWS": unit_sketch.ROWS, "K": 1024, "POSITIONS": positions, "CHANNELS": channels}
                yield partial(
                    build, unit_sketch.unit_sketch_kernel, arch, unit_sketch.WARPS, 3, dtype, **sizes, table=table
                )


JOBS = list(jobs())


def run(number: int) -> str:
    return json.dumps(JOBS[number]())


def main() -> None:
    # Forked, so that the processes need not load Triton and find the jobs where they are.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for line in pool.imap(run, range(len(JOBS))):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
