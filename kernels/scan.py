"""The fast product: for each row and each group of columns, who is nearest by rounded values, and how near.

    bound(i, j) = bound_i + bound_j - 2 h_i . h_j <= s^2 |x_i - y_j|^2        (see rounding.py)
    first[g, i] = the least over the columns j of group g, its place in the group in the low 8 bits
    second[g, i] = the least over the group's other columns

One program multiplies one tile, as in any matrix product, but writes two numbers a row instead of the tile, so nothing
of size rows x columns reaches memory. What decide.py needs to be exact is all here: a group whose second is above the
best distance known holds at most one candidate, and first says which.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from imletriton.kernels.launch import scan_tile
from imletriton.kernels.rounding import MASKED, NONE

PLACE_BITS = 0xFF  # of first: the low bits that hold a place in a group
BAND = tl.constexpr(8)  # tiles of rows that share a sweep over the columns, for the second-level cache
PLACES = tl.constexpr(PLACE_BITS)


@triton.jit
def banded(program, row_tiles, column_tiles):
    """The tile of a program: consecutive programs share operands."""
    band = program // (BAND * column_tiles)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    within = program % (BAND * column_tiles)
    return band * BAND + within % height, within // height


@triton.jit
def with_place(value, place):
    """A float whose low bits are a place: still near the value, and of one with it by a single minimum."""
    return ((value.to(tl.int32, bitcast=True) & ~PLACES) | place).to(tl.float32, bitcast=True)


@triton.jit
def scan_kernel(
    half_rows, half_columns, bound_rows, bound_columns, first, second, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, group = banded(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS))
    row = row_tile * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, COLUMNS)
    column = group * COLUMNS + place
    at = tl.arange(0, DEPTH)
    # Beyond the end, read the last vector again: no mask in the loop. The bounds below see to the rest.
    a = half_rows + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * depth + at[None, :]
    b = half_columns + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * depth + at[:, None]
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(0, depth, DEPTH):
        product = tl.dot(tl.load(a), tl.load(b), product)
        a += DEPTH
        b += DEPTH
    column_bound = tl.load(bound_columns + column, mask=column < columns, other=NONE)
    value = with_place((column_bound * 0.5)[None, :] - product, place[None, :])
    least = tl.min(value, 1)
    next_least = tl.min(tl.where(value == least[:, None], NONE * 0.5, value), 1)
    # The row's part comes last: once a row instead of once a product.
    row_bound = tl.load(bound_rows + row, mask=row < rows, other=0.0)
    least_place = least.to(tl.int32, bitcast=True) & PLACES
    least = tl.maximum(tl.minimum(row_bound + least * 2, NONE), 0.0)
    next_least = tl.maximum(tl.minimum(row_bound + next_least * 2, NONE), 0.0)
    to = group.to(tl.int64) * rows + row
    tl.store(first + to, with_place(least, least_place), mask=row < rows)
    tl.store(second + to, next_least, mask=row < rows)


@torch.library.custom_op("imletriton::scan", mutates_args=())
def scan(
    half_rows: Tensor, bound_rows: Tensor, half_columns: Tensor, bound_columns: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """first and second, float32 [groups, rows], from float16 [k, depth] and float32 [k] of either side (rounding.py).

    group: columns a group, 256 at most, a power of two of at least 16. Where none is left: MASKED or nearly.
    """
    first, second = scan_like(half_rows, bound_rows, half_columns, bound_columns, group)
    rows, columns = len(half_rows), len(half_columns)
    if rows and columns:
        tile = scan_tile(half_rows.device, rows)
        with torch.cuda.device_of(half_rows):
            scan_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, group),)](
                half_rows, half_columns, bound_rows, bound_columns, first, second, rows, columns, half_rows.shape[1],
                ROWS=tile.rows, COLUMNS=group, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return first, second


@scan.register_fake
def scan_like(
    half_rows: Tensor, bound_rows: Tensor, half_columns: Tensor, bound_columns: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    groups = -(-half_columns.shape[0] // group)
    first, second = (half_rows.new_empty((groups, half_rows.shape[0]), dtype=torch.float32) for _ in range(2))
    return first, second


def scan_reference(
    half_rows: Tensor, bound_rows: Tensor, half_columns: Tensor, bound_columns: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """first and second in plain PyTorch, without places, and the places, int64 [groups, rows]."""
    short = -len(half_columns) % group
    bounds = bound_rows[:, None] + bound_columns - 2 * half_rows.float() @ half_columns.float().T
    bounds = torch.nn.functional.pad(bounds.clamp(0, MASKED), (0, short), value=MASKED)
    grouped = rearrange(bounds, "row (group member) -> row group member", member=group)
    two, places = grouped.topk(2, largest=False)
    return two[..., 0].T, two[..., 1].T, places[..., 0].T
