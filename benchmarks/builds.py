"""python -m benchmarks.builds: build every kernel in every configuration for GPUs that need not be here.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imletriton.kernels import decide, launch, refine, rounding, scan, start, unit_sketch, within

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
ALIGNED = {"D", "K", "stride_vm", "stride_hm", "stride_xm", "stride_yn"}  # multiples of 16, where it is asked


Result = dict[str, Any]


def compiled(kernel: Any, arch: int, warps: int, stages: int, dtype: str, constants: dict[str, Any]) -> Any:
    """Compile as a launch with aligned, contiguous tensors would."""
    names = kernel.arg_names
    signature, aligned = {}, {}
    for position, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = "*" + (dtype if name in VECTORS else DTYPES.get(name, "fp32"))
        else:
            signature[name] = SCALARS.get(name, "i32")
        asked = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if asked and (name.endswith("_ptr") or name in ALIGNED):
            aligned[(position,)] = [["tt.divisibility", 16]]
    fixed = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages}
    )


def of_cubin(built: Any, option: str) -> str:
    """What cuobjdump says of a build."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        report = subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True)
    return report.stdout + report.stderr


def build(
    kernel: Any, arch: int, warps: int, stages: int, dtype: str = "fp32", table: str = "", **constants: Any
) -> Result:
    """Compile a kernel and say what it needs."""
    built = compiled(kernel, arch, warps, stages, dtype, constants)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", of_cubin(built, "-res-usage")))
    numbers = [p.name for p in kernel.params if p.name not in constants and not p.name.endswith("_ptr")]
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
        **constants,
    }


def jobs() -> Iterator[Callable[[], Result]]:
    """Every kernel in every configuration, for every GPU."""
    for arch, table in DEVICES.items():
        tiles = list(launch.SCAN[table].values())
        for tile in set(tiles):
            sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
            yield partial(build, scan.scan_kernel, arch, tile.num_warps, tile.num_stages, **sizes, table=table)
        for block_m, group in {(tile.block_m, tile.block_n) for tile in tiles}:
            tile = launch.REFINE[table][block_m]
            sizes = {"BLOCK_M": block_m, "BLOCK_N": min(group, tile.block_n), "GROUP": group}
            options = tile.num_warps, tile.num_stages
            yield partial(build, refine.refine_kernel, arch, *options, **sizes, table=table)
            for at_first, any_will_do, top in ((True, False, 1), (False, True, 1), (False, False, 8)):
                sizes = {"GROUP": group, "BLOCK_M": block_m, "BLOCK_G": decide.MOST_GROUPS, "BLOCK_TOP": top}
                sizes |= {"BLOCK_K": decide.MEASURED // scan.PAIR, "GROUP_BLOCK_K": decide.MEASURED // group}
                flags = {"AT_FIRST": at_first, "ANY": any_will_do}
                options = decide.NUM_WARPS, 3, "bf16"
                yield partial(build, decide.decide_kernel, arch, *options, **sizes, **flags, table=table)
        tile = launch.WITHIN[table]
        for codes in (False, True):
            sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": within.BLOCK_K, "CODES": codes}
            options = tile.num_warps, tile.num_stages
            yield partial(build, within.within_kernel, arch, *options, **sizes, table=table)
        for dtype in ("fp32", "bf16"):
            for block_k in rounding.BLOCKS_K:
                sizes = {"BLOCK_M": rounding.BLOCK_M, "BLOCK_K": block_k}
                options = rounding.NUM_WARPS, 3, dtype
                yield partial(build, rounding.rounding_kernel, arch, *options, **sizes, table=table)
            options = start.NUM_WARPS, 3, dtype
            sizes = {"BLOCK_M": start.CENTRE_BLOCK_M, "BLOCK_K": start.CENTRE_BLOCK_K}
            yield partial(build, start.centre_kernel, arch, *options, **sizes, table=table)
            sizes = {"BLOCK_M": start.BLOCK_M, "BLOCK_K": start.BLOCK_K}
            yield partial(build, start.scale_kernel, arch, *options, **sizes, table=table)
            options = refine.SPLIT_WARPS, 3, dtype
            yield partial(build, refine.split_kernel, arch, *options, BLOCK_M=refine.SPLIT_BLOCK_M, table=table)
            for positions, channels in ((12, 64), (1, 512)):  # of VGG16's first and last layers, for 800 buckets
                sizes = {"BLOCK_R": unit_sketch.BLOCK_R, "BLOCK_K": 1024, "C": channels, "L": positions * channels}
                sizes |= {"BLOCK_P": triton.next_power_of_2(positions), "BLOCK_C": channels}
                options = unit_sketch.NUM_WARPS, 3, dtype
                yield partial(build, unit_sketch.unit_sketch_kernel, arch, *options, **sizes, table=table)


JOBS = list(jobs())


def run(number: int) -> str:
    return json.dumps(JOBS[number]())


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
    jobs = {(scan.scan_kernel, tile, tile.block_n) for tile in launch.SCAN["hopper"].values()}
    jobs |= {(refine.refine_kernel, launch.REFINE["hopper"][tile.block_m], tile.block_n) for _, tile, _ in jobs}
    for kernel, tile, group in sorted(jobs, key=lambda job: (job[0].__name__, job[1].block_m, job[2])):
        is_scan = kernel is scan.scan_kernel
        sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": min(tile.block_n, group)}
        sizes |= {"BLOCK_K": tile.block_k} if is_scan else {"GROUP": group}
        code = Code.of(compiled(kernel, 90, tile.num_warps, tile.num_stages, "fp32", sizes))
        products = sizes["BLOCK_M"] * sizes["BLOCK_N"] / (32 * tile.num_warps)
        name = f"{'scan' if is_scan else 'refine'}, {sizes['BLOCK_M']} x {sizes['BLOCK_N']}, {tile.num_warps} warps"
        rows[name if is_scan else f"{name}, groups of {group}"] = {
            "instructions in a step": code.in_loop,
            "barriers in a step": code.barriers,
            "instructions for 1,000 multiply-adds": round(1000 * code.in_loop / (32 * products * tile.block_k), 2),
            "instructions for a product after the loop": round(code.after_loop / products, 2),
        }
    return rows


def main() -> None:
    if "--counts" in sys.argv:
        print(json.dumps(count_code()))
        return
    # Forked, so that the processes need not load Triton and find the jobs where they are.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        for line in pool.imap(run, range(len(JOBS))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
