"""The accurate product, for groups in which the fast one leaves too many rows in doubt.

A row is in doubt about a group while the group's second bound is not above the row's best distance: some column other
than the first may be nearer, and nobody knows which. decide.py then measures all of them, which suits a few rows. Where
many rows of a tile are in doubt, this kernel multiplies the tile again, from float32 by three TF32 products, and puts
its far tighter bounds in place of the old ones. Everywhere else its programs read a few numbers and end.

    bound(i, j) = |u_i|^2 + |u_j|^2 - 2 u_i . u_j - k (|u_i|^2 + |u_j|^2),  u = s (v - c)

k covers what three TF32 products drop (3 * 2^-20 of |u_i| |u_j|), the additions in parts of DEPTH values (3 * DEPTH of
2^-23 each; parts add up to |u_i| |u_j| at most, by Cauchy and Schwarz) and of the parts, and the norms' own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import REFINE, generation
from imletriton.kernels.rounding import NONE
from imletriton.kernels.scan import banded, with_place

FEW_DOUBTS = tl.constexpr(4)  # rows of a tile that may be left to decide.py


@triton.jit
def centred(vectors, row, row_stride, at, d, centre, scale):
    """s (v - c), float32 [rows, depth]; nothing that is not finite, as that would spoil the sums."""
    value = tl.load(vectors + row[:, None] * row_stride + at[None, :], mask=(at < d)[None, :], other=0.0)
    value = (value.to(tl.float32) - tl.load(centre + at, mask=at < d, other=0.0)[None, :]) * scale
    value = tl.where((at < d)[None, :] & (value == value), value, 0.0)
    return tl.minimum(tl.maximum(value, -1e16), 1e16)


@triton.jit
def refine_kernel(
    x, x_stride, y, y_stride, centre, scale, sq_norm_x, sq_norm_y, bound_y, best, first, second,
    rows, columns, d, loss, one,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, group = banded(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(columns, GROUP))
    row = row_tile * ROWS + tl.arange(0, ROWS)
    to = group.to(tl.int64) * rows + row
    s = tl.load(scale)
    limit = tl.load(best + row, mask=row < rows, other=-1.0) * s.to(tl.float64) * s.to(tl.float64)
    doubts = tl.load(second + to, mask=row < rows, other=NONE)
    in_doubt = (doubts.to(tl.float64) <= limit) & (doubts < NONE * 0.1)
    if tl.sum(in_doubt.to(tl.int32), 0) > FEW_DOUBTS:
        x_row = tl.minimum(row, rows - 1).to(tl.int64)
        x_part = tl.load(sq_norm_x + x_row) * (1 - loss)
        least = tl.full((ROWS,), NONE, tl.float32)
        next_least = tl.full((ROWS,), NONE, tl.float32)
        least_place = tl.zeros((ROWS,), tl.int32)
        for part in range(0, GROUP, COLUMNS):
            column = group * GROUP + part + tl.arange(0, COLUMNS)
            y_row = tl.minimum(column, columns - 1).to(tl.int64)
            product = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, d, DEPTH):
                at = start + tl.arange(0, DEPTH)
                a = centred(x, x_row, x_stride, at, d, centre, s)
                b = centred(y, y_row, y_stride, at, d, centre, s)
                # Times one, so that each part is summed on its own and the total gathers few roundings.
                product += tl.dot(a, tl.trans(b), input_precision="tf32x3") * one
            y_part = tl.load(sq_norm_y + y_row) * (1 - loss)
            masked = (tl.load(bound_y + y_row) > NONE * 0.1) | (column >= columns)
            value = tl.maximum((x_part[:, None] - product) + (y_part[None, :] - product), 0.0)
            value = tl.where(masked[None, :], NONE, value)
            of_part, place = tl.min(value, 1, return_indices=True)
            others = tl.min(tl.where(tl.arange(0, COLUMNS)[None, :] == place[:, None], NONE, value), 1)
            next_least = tl.minimum(tl.minimum(next_least, others), tl.maximum(least, of_part))
            least_place = tl.where(of_part < least, part + place, least_place)
            least = tl.minimum(least, of_part)
        tl.store(first + to, with_place(least, least_place), mask=row < rows)
        tl.store(second + to, next_least, mask=row < rows)


def loss(d: int, depth: int) -> float:
    """k of the bound, for vectors of d dimensions in parts of depth."""
    return 2.0**-18 + (4 * depth + 64 + 2 * d / depth) * 2.0**-23


@torch.library.custom_op("imletriton::refine", mutates_args=("first", "second"))
def refine(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, sq_norm_y: Tensor, bound_y: Tensor,
    best: Tensor, first: Tensor, second: Tensor, group: int,
) -> None:  # fmt: skip
    """Tighten first and second, as scan made them, where many rows are in doubt.

    x [rows, d] and y [columns, d] are the vectors, best float64 [rows] the least squared distances known; the rest is
    what round_vectors returned for them.
    """
    if len(x) and len(y):
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        tile = REFINE[generation(x.device)]
        with torch.cuda.device_of(x):
            refine_kernel[(triton.cdiv(len(x), tile.rows) * triton.cdiv(len(y), group),)](
                x, x.stride(0), y, y.stride(0), centre, scale, sq_norm_x, sq_norm_y, bound_y, best, first, second,
                len(x), len(y), x.shape[1], loss(x.shape[1], tile.depth), 1.0,
                GROUP=group, ROWS=tile.rows, COLUMNS=min(group, tile.columns), DEPTH=tile.depth,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip


@refine.register_fake
def refine_like(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, sq_norm_y: Tensor, bound_y: Tensor,
    best: Tensor, first: Tensor, second: Tensor, group: int,
) -> None:  # fmt: skip
    return None
