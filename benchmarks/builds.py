"""python -m benchmarks.builds: build every kernel in every configuration, for GPUs that need not be present.

Prints what the compiler says, a line of JSON for each build; with --counts, what the machine code of the search's
matmuls for an H100 is made of. It has a process of its own, since Triton either interprets kernels or compiles them.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imletriton.kernels import (
    decide,
    launch,
    refine,
    rounding,
    scan,
    start,
    unit_sketch,
    within,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = {80: "ampere", 86: "small", 90: "hopper", 100: "blackwell", 120: "small"}
DTYPES = {"half_ptr": "fp16", "half_x_ptr": "fp16", "half_y_ptr": "fp16", "sign_ptr": "i8", "shift_ptr": "i32"}
DTYPES |= {"best_sq_distance_ptr": "fp64", "best_index_ptr": "i64", "accepted_ptr": "i64", "open_ptr": "i8"}
DTYPES |= {"split_x_ptr": "fp16", "split_y_ptr": "fp16", "split_ptr": "fp16", "sq_radius_ptr": "fp64"}
DTYPES |= {"count_ptr": "i64", "code_ptr": "i64"}
DTYPES |= dict.fromkeys(["doubts_ptr", "crowded_ptr", "exponent_ptr", "ticket_ptr"], "i32")
# Of the input's dtype; all other pointers are float32.
VECTORS = {"x_ptr", "y_ptr", "vectors_ptr", "layer_ptr"}
SCALARS = {
    "relative_error": "fp32",
    "slack": "fp32",
    "offset": "i64",
    "total": "i64",
    "room": "i64",
}  # all others are int32
STEP = 64  # dimensions in a step of the loop over them
ALIGNED = {
    "D",
    "K",
    "stride_vm",
    "stride_hm",
    "stride_xm",
    "stride_yn",
}  # assumed to be multiples of 16 where Triton specialises on that


@dataclass(frozen=True)
class Job:
    """A kernel to build: its constants, how it is launched, and the dtype of the vectors it is given."""

    kernel: Any
    warps: int
    stages: int
    constants: dict[str, Any]
    dtype: str = "fp32"


def compiled(job: Job, arch: int) -> Any:
    """Compile as a launch with aligned, contiguous tensors would."""
    kernel = job.kernel
    names = kernel.arg_names
    signature, aligned = {}, {}
    for position, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
        if name in job.constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = "*" + (job.dtype if name in VECTORS else DTYPES.get(name, "fp32"))
        else:
            signature[name] = SCALARS.get(name, "i32")
        asked = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if asked and (name.endswith("_ptr") or name in ALIGNED):
            aligned[(position,)] = [["tt.divisibility", 16]]
    fixed = {(names.index(name),): value for name, value in job.constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    options = {"num_warps": job.warps, "num_stages": job.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def of_cubin(built: Any, option: str) -> str:
    """What cuobjdump says of a build."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        report = subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True)
    return report.stdout + report.stderr


def build(job: Job, arch: int, table: str) -> dict[str, Any]:
    """Compile a kernel for an architecture and a table of tiles, and say what it needs."""
    kernel, built = job.kernel, compiled(job, arch)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", of_cubin(built, "-res-usage")))
    numbers = [p.name for p in kernel.params if p.name not in job.constants and not p.name.endswith("_ptr")]
    return {
        "kernel": kernel.__name__,
        "arch": arch,
        "table": table,
        "registers": int(usage["REG"]),
        "spilled": int(usage["STACK"]) + int(usage["LOCAL"]),
        "shared": built.metadata.shared,
        "numbers": numbers,
        "unspecialised": [p.name for p in kernel.params if p.do_not_specialize],
        "products": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", built.asm["ptx"]))),
        **job.constants,
    }


def sizes(tile: launch.Tile) -> dict[str, int]:
    """The constants of a tile."""
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}


def jobs(table: str) -> Iterator[Job]:
    """Every kernel in every configuration of a table of tiles."""
    tiles = set(launch.SCAN[table].values())
    for tile in tiles:
        yield Job(scan.scan_kernel, tile.num_warps, tile.num_stages, sizes(tile))
    for block_m, group in {(tile.block_m, tile.block_n) for tile in tiles}:
        tile = launch.REFINE[table][block_m]
        yield refinement(tile, group)
        blocks = {"GROUP": group, "BLOCK_M": block_m, "BLOCK_G": decide.MOST_GROUPS}
        blocks |= {"BLOCK_K": decide.MEASURED // scan.PAIR, "GROUP_BLOCK_K": decide.MEASURED // group}
        for at_first, any_will_do, top in ((True, False, 1), (False, True, 1), (False, False, 8)):
            flags = {"AT_FIRST": at_first, "ANY": any_will_do, "BLOCK_TOP": top}
            yield Job(decide.decide_kernel, decide.NUM_WARPS, 3, blocks | flags, "bf16")
    tile = launch.WITHIN[table]
    for codes in (False, True):
        constants = sizes(tile) | {"BLOCK_K": within.BLOCK_K, "CODES": codes}
        yield Job(within.within_kernel, tile.num_warps, tile.num_stages, constants)
    for dtype in ("fp32", "bf16"):
        for block_k in rounding.BLOCKS_K:
            blocks = {"BLOCK_M": rounding.BLOCK_M, "BLOCK_K": block_k}
            yield Job(rounding.rounding_kernel, rounding.NUM_WARPS, 3, blocks, dtype)
        blocks = {"BLOCK_M": start.CENTRE_BLOCK_M, "BLOCK_K": start.CENTRE_BLOCK_K}
        yield Job(start.centre_kernel, start.NUM_WARPS, 3, blocks, dtype)
        blocks = {"BLOCK_M": start.BLOCK_M, "BLOCK_K": start.BLOCK_K}
        yield Job(start.scale_kernel, start.NUM_WARPS, 3, blocks, dtype)
        yield Job(refine.split_kernel, refine.SPLIT_WARPS, 3, {"BLOCK_M": refine.SPLIT_BLOCK_M}, dtype)
        for positions, channels in ((12, 64), (1, 512)):  # of VGG16's first and last layers, for 800 buckets
            blocks = {"BLOCK_R": unit_sketch.BLOCK_R, "BLOCK_K": 1024, "C": channels, "L": positions * channels}
            blocks |= {"BLOCK_P": triton.next_power_of_2(positions), "BLOCK_C": channels}
            yield Job(unit_sketch.unit_sketch_kernel, unit_sketch.NUM_WARPS, 3, blocks, dtype)


def refinement(tile: launch.Tile, group: int) -> Job:
    """The refinement by a tile, after a scan in groups of so many samples."""
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": min(group, tile.block_n), "GROUP": group}
    return Job(refine.refine_kernel, tile.num_warps, tile.num_stages, blocks)


JOBS = [(job, arch, table) for arch, table in DEVICES.items() for job in jobs(table)]


def run(number: int) -> str:
    """Build a job, and return what it needs as a line of JSON."""
    return json.dumps(build(*JOBS[number]))


@dataclass(frozen=True)
class Code:
    """What the machine code of a kernel is made of, in instructions of a warp.

    Attributes:
        in_loop: in the loop over dimensions, the innermost one that multiplies matrices.
        barriers: of these, those that wait for the program's other warps.
        after_loop: after that loop, to the end of the loop around it or of the kernel.
    """

    in_loop: int
    barriers: int
    after_loop: int

    @classmethod
    def of(cls, built: Any) -> "Code":
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\S[^;]*);", of_cubin(built, "-sass"))
        code = [(int(address, 16), text) for address, text in lines if not text.startswith("NOP")]
        jumps = ((address, re.search(r"^BRA.*?0x([0-9a-f]+)", text)) for address, text in code)
        loops = [(int(found[1], 16), address) for address, found in jumps if found and int(found[1], 16) < address]

        def inside(loop: tuple[int, int]) -> list[str]:
            return [text for address, text in code if loop[0] <= address <= loop[1]]

        multiplying = [loop for loop in loops if any("MMA" in text for text in inside(loop))]
        inner = min(multiplying, key=lambda loop: loop[1] - loop[0])
        around = [loop[1] for loop in loops if loop[0] < inner[0] and loop[1] > inner[1]]
        end = min(around, default=code[-1][0])
        after = [text for address, text in code if inner[1] < address <= end and not text.startswith("BRA")]
        return cls(len(inside(inner)), sum(text.startswith("BAR") for text in inside(inner)), len(after))


def count_code() -> dict[str, dict[str, float]]:
    """Count the machine code of the scan and the refinement for an H100, whatever their tile.

    Returns:
        {kernel and tile: instructions of a warp in a step over 64 dimensions, barriers in it, instructions for 1,000
        multiply-adds there, and instructions for each product after the loop}.
    """
    rows = {}
    tiles = sorted(set(launch.SCAN["hopper"].values()), key=lambda tile: (tile.block_m, tile.block_n))
    scans = [Job(scan.scan_kernel, tile.num_warps, tile.num_stages, sizes(tile)) for tile in tiles]
    refinements = [refinement(launch.REFINE["hopper"][tile.block_m], tile.block_n) for tile in tiles]
    for job in refinements + scans:
        code, group = Code.of(compiled(job, 90)), job.constants.get("GROUP")
        block_m, block_n = job.constants["BLOCK_M"], job.constants["BLOCK_N"]
        products = block_m * block_n / (32 * job.warps)
        name = f"{'refine' if group else 'scan'}, {block_m} x {block_n}, {job.warps} warps"
        rows[f"{name}, groups of {group}" if group else name] = {
            "instructions in a step": code.in_loop,
            "barriers in a step": code.barriers,
            "instructions for 1,000 multiply-adds": round(1000 * code.in_loop / (32 * products * STEP), 2),
            "instructions for a product after the loop": round(code.after_loop / products, 2),
        }
    return rows


def main() -> None:
    """Print a line of JSON for each build, or one with the counts."""
    if "--counts" in sys.argv:
        print(json.dumps(count_code()))
        return
    # Forked, so that the processes need not import Triton again.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for line in pool.imap(run, range(len(JOBS))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
