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

from imletriton.kernels import (
    decide,
    launch,
    refine,
    rounding,
    scan,
    search,
    small_block,
    small_block_map_gradients,
    small_block_tiles,
    small_block_weight_gradients,
    unit_sketch,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = {80: "ampere", 86: "small", 90: "hopper", 100: "hopper", 120: "small"}
DTYPES = {"half_ptr": "fp16", "half_x_ptr": "fp16", "half_y_ptr": "fp16", "sign_ptr": "i8", "shift_ptr": "i32"}
DTYPES |= {"best_sq_distance_ptr": "fp64", "best_index_ptr": "i64"}
# Of the input's dtype; all other pointers are float32.
VECTORS = {"x_ptr", "y_ptr", "vectors_ptr", "layer_ptr"}
VECTORS |= {"adain_ptr", "hidden_ptr", "out_ptr", "grad_ptr", "grad_hidden_ptr", "grad_x_ptr"}  # the small block's maps
SCALARS = {"relative_error": "fp32", "one": "fp32", "offset": "i64"}  # all others are int32
ALIGNED = {"D", "K", "C", "stride_vm", "stride_hm", "stride_xm", "stride_yn", "stride_scale", "stride_shift"}  # by 16
BLOCKS = [(1, 1), (4, 1), (4, 4), (16, 1)]  # resolution and factor of small blocks, built for one GPU only


Result = dict[str, object]


def build(
    kernel: object,
    arch: int,
    warps: int,
    stages: int,
    dtype: str = "fp32",
    table: str = "",
    weights: str = "fp32",
    **constants: object,
) -> Result:
    """Compile as a launch with aligned, contiguous tensors would, for weights (w1, b1, ...) of their own dtype."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature, aligned = {}, {}
    for position, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            kind = weights if re.match(r"[wb]\d", name) else dtype if name in VECTORS else DTYPES.get(name, "fp32")
            signature[name] = "*" + kind
        else:
            signature[name] = SCALARS.get(name, "i32")
        if name.endswith("_ptr") or name in ALIGNED:
            aligned[(position,)] = [["tt.divisibility", 16]]
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
        "numbers": [name for name, kind in signature.items() if kind in ("i32", "i64")],
        "unspecialised": [p.name for p in kernel.params if p.do_not_specialize],  # type: ignore[attr-defined]
        "products": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", built.asm["ptx"]))),
        **constants,
    }


def jobs() -> Iterator[Callable[[], Result]]:
    """Every kernel in every configuration, for every GPU."""
    for arch, table in DEVICES.items():
        for tile in launch.SCAN[table].values():
            sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
            yield partial(build, scan.scan_kernel, arch, tile.num_warps, tile.num_stages, **sizes, table=table)
        tile = launch.REFINE[table]
        for group in {tile.block_n for tile in launch.SCAN[table].values()}:
            sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": min(group, tile.block_n), "BLOCK_K": tile.block_k}
            options = tile.num_warps, tile.num_stages
            yield partial(build, refine.refine_kernel, arch, *options, GROUP=group, **sizes, table=table)
            sizes = {"GROUP": group, "BLOCK_G": search.MOST_GROUPS, "BLOCK_K": decide.BLOCK_K}
            sizes["GROUP_BLOCK_K"] = decide.GROUP_BLOCK // group
            for first_only in (True, False):
                flags = {"FIRST_ONLY": first_only, "ANY": not first_only}
                options = decide.NUM_WARPS, 3, "bf16"
                yield partial(build, decide.decide_kernel, arch, *options, **sizes, **flags, table=table)
        for dtype in ("fp32", "fp16", "bf16"):
            for block_k in rounding.BLOCKS_K:
                sizes = {"BLOCK_M": rounding.BLOCK_M, "BLOCK_K": block_k}
                options = rounding.NUM_WARPS, 3, dtype
                yield partial(build, rounding.rounding_kernel, arch, *options, **sizes, table=table)
        for dtype in ("fp32", "bf16"):
            for positions, channels in ((16, 64), (1, 512)):  # of VGG16's first and last layers
                sizes = {"BLOCK_R": unit_sketch.BLOCK_R, "BLOCK_K": 1024, "BLOCK_P": positions, "BLOCK_C": channels}
                options = unit_sketch.NUM_WARPS, 3, dtype
                yield partial(build, unit_sketch.unit_sketch_kernel, arch, *options, **sizes, table=table)
        yield from small_blocks(arch, table, 8, 1, "bf16", "bf16")
    for resolution, factor in BLOCKS:
        yield from small_blocks(90, "hopper", resolution, factor, "bf16", "bf16")
    for dtype in ("bf16", "fp32"):
        yield from small_blocks(90, "hopper", 8, 1, dtype, "fp32")


def small_blocks(
    arch: int, table: str, resolution: int, factor: int, dtype: str, weights: str
) -> Iterator[Callable[[], Result]]:
    """The small block and its gradients at the papers' width."""
    shape = {"C": 384, "MIDDLE": 96, "R": resolution, "FACTOR": factor, "KERNEL": 3 if resolution > 2 else 1}
    whole = resolution <= small_block_tiles.MOST_WHOLE
    tile = (small_block_tiles.WHOLE if whole else small_block_tiles.SPLIT)[table]
    itemsizes = [{"bf16": 2, "fp32": 4}[d] for d in (dtype, weights)]
    sizes = small_block_tiles.block_sizes(tile, 384, 96, resolution, factor, max(itemsizes))
    options = {"dtype": dtype, "weights": weights, "table": table} | shape
    for kernel in (small_block.small_block_kernel, small_block_map_gradients.small_block_map_gradients_kernel):
        yield partial(build, kernel, arch, tile.num_warps, tile.num_stages, **options, **sizes)
    kernel = small_block_weight_gradients.small_block_weight_gradients_kernel
    sizes = small_block_weight_gradients.weight_block_sizes(96, itemsizes[0])
    launch_options = small_block_weight_gradients.NUM_WARPS, small_block_weight_gradients.NUM_STAGES[table]
    yield partial(build, kernel, arch, *launch_options, **options, **sizes)


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
