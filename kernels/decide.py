"""The decision: the scan's candidates are measured, from differences, until no other column can be nearer.

    best_i = min |x_i - y_j|^2 over the columns j with bound(i, j) <= best_i

One program decides one row. It first measures the first column of each group whose bound is not above the best, in the
order of their bounds, and then all columns of the groups that are still in doubt (see refine.py). Differences are
float32, one rounding each, and their squares are summed in float64, so a squared distance is right to 2^-23, also
between vectors that nearly coincide or share a large offset. Of columns equally near, to 10^-12, the lowest index wins,
so the result does not depend on the order in which groups are measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.rounding import MASKED, MASKED_BOUND
from imletriton.kernels.scan import MEMBER_MASK

TIE = tl.constexpr(1e-12)
BLOCK_K = 512  # dimensions at once where a single column is measured
GROUP_BLOCK = 1024  # values at once where a whole group is measured: its columns times dimensions
NUM_WARPS = 2


@triton.jit
def nearer(sq_distance, index, best_sq_distance, best_index):
    """Whether (sq_distance, index) goes before the best: sq_distance < best, or equal to 10^-12 and index < best_index.

    A best that has no index, -1, must be undercut.
    """
    return (sq_distance < best_sq_distance * (1 - TIE)) | (
        (sq_distance <= best_sq_distance * (1 + TIE)) & (index < best_index)
    )


@triton.jit
def still_open(bound, best_sq_distance, best_index, sq_scale, ANY: tl.constexpr):
    """Which groups, bool [BLOCK_G], may hold a nearer column: bound <= s^2 best.

    bound is float32 [BLOCK_G] and sq_scale s^2. With ANY, no group is open once the row has an index.
    """
    limit = tl.where(best_index < 0, best_sq_distance, -1.0) if ANY else best_sq_distance
    return (bound < MASKED_BOUND * 0.1) & (bound.to(tl.float64) <= limit * sq_scale)


@triton.jit(do_not_specialize=["M", "N", "num_groups", "offset"])  # one build serves all counts
def decide_kernel(
    x_ptr, stride_xm, y_ptr, stride_yn, bound_y_ptr, scale_ptr, first_ptr, second_ptr,
    best_sq_distance_ptr, best_index_ptr, M, N, num_groups, D, offset,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_BLOCK_K: tl.constexpr,
    FIRST_ONLY: tl.constexpr, ANY: tl.constexpr,
):  # fmt: skip
    """best_sq_distance_i = min(best_sq_distance_i, min_j |x_i - y_j|^2) for one row i, and the index of that column.

    Reads x [M, D], y [N, D], bound_y float32 [N], scale float32 [], first and second, float32 [num_groups, M]. Reads
    and writes best_sq_distance float64 [M] and best_index int64 [M], which is j + offset. BLOCK_G is num_groups rounded
    up to a power of two. BLOCK_K dimensions are read at once of a single column, GROUP_BLOCK_K of a whole group's.
    FIRST_ONLY measures a single column, that of the least bound; ANY stops as soon as the row has an index.
    """
    row = tl.program_id(0).to(tl.int64)
    sq_scale = tl.load(scale_ptr).to(tl.float64) * tl.load(scale_ptr).to(tl.float64)
    best_sq_distance = tl.load(best_sq_distance_ptr + row)
    best_index = tl.load(best_index_ptr + row)
    offs_g = tl.arange(0, BLOCK_G)
    mask_g = offs_g < num_groups
    offs_bound = offs_g.to(tl.int64) * M + row
    packed = tl.load(first_ptr + offs_bound, mask=mask_g, other=MASKED_BOUND).to(tl.int32, bitcast=True)
    bound = (packed & ~MEMBER_MASK).to(tl.float32, bitcast=True)
    first_column = offs_g * GROUP + (packed & MEMBER_MASK)
    # A group that has been measured gets the bound MASKED, so that the loop ends.
    while tl.max(still_open(bound, best_sq_distance, best_index, sq_scale, ANY).to(tl.int32), 0) > 0:
        group = tl.argmin(bound, 0)
        column = tl.sum(tl.where(offs_g == group, first_column, 0), 0)
        acc = tl.zeros((BLOCK_K,), tl.float64)
        for start_k in range(0, D, BLOCK_K):
            offs_k = start_k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < D
            x = tl.load(x_ptr + row * stride_xm + offs_k, mask=mask_k, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + column.to(tl.int64) * stride_yn + offs_k, mask=mask_k, other=0.0).to(tl.float32)
            difference = (x - y).to(tl.float64)
            acc += difference * difference
        sq_distance = tl.sum(acc, 0)
        is_nearer = nearer(sq_distance, column + offset, best_sq_distance, best_index)
        best_sq_distance = tl.where(is_nearer, sq_distance, best_sq_distance)
        best_index = tl.where(is_nearer, column + offset, best_index)
        bound = tl.where((offs_g == group) | FIRST_ONLY, MASKED_BOUND, bound)
    if not FIRST_ONLY:
        bound = tl.load(second_ptr + offs_bound, mask=mask_g, other=MASKED_BOUND)
        while tl.max(still_open(bound, best_sq_distance, best_index, sq_scale, ANY).to(tl.int32), 0) > 0:
            group = tl.argmin(bound, 0)
            columns = group * GROUP + tl.arange(0, GROUP)
            masked = tl.load(bound_y_ptr + columns, mask=columns < N, other=MASKED_BOUND) > MASKED_BOUND * 0.1
            sq_distances = tl.zeros((GROUP,), tl.float64)
            for start_k in range(0, D, GROUP_BLOCK_K):
                offs_k = start_k + tl.arange(0, GROUP_BLOCK_K)
                mask_k = offs_k < D
                mask = ~masked[:, None] & mask_k[None, :]
                x = tl.load(x_ptr + row * stride_xm + offs_k, mask=mask_k, other=0.0).to(tl.float32)
                y_ptrs = y_ptr + columns.to(tl.int64)[:, None] * stride_yn + offs_k[None, :]
                y = tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32)
                difference = tl.where(mask, x[None, :] - y, 0.0).to(tl.float64)
                sq_distances += tl.sum(difference * difference, 1)
            sq_distances = tl.where(masked, float("inf"), sq_distances)
            sq_distance = tl.min(sq_distances, 0)
            column = tl.min(tl.where(sq_distances <= sq_distance * (1 + TIE), columns, 0x7FFFFFFF), 0)
            is_nearer = nearer(sq_distance, column + offset, best_sq_distance, best_index)
            best_sq_distance = tl.where(is_nearer, sq_distance, best_sq_distance)
            best_index = tl.where(is_nearer, column + offset, best_index)
            bound = tl.where(offs_g == group, MASKED_BOUND, bound)
    tl.store(best_sq_distance_ptr + row, best_sq_distance)
    tl.store(best_index_ptr + row, best_index)


@torch.library.custom_op("imletriton::decide", mutates_args=("best_sq_distance", "best_index"))
def decide(
    x: Tensor, y: Tensor, bound_y: Tensor, scale: Tensor, first: Tensor, second: Tensor,
    best_sq_distance: Tensor, best_index: Tensor, group: int, offset: int, first_only: bool, any_will_do: bool,
) -> None:  # fmt: skip
    """Lower best_sq_distance and set best_index, in place, where a column is nearer to a row.

    Args:
        x: the rows' vectors, [M, D].
        y: the columns' vectors, [N, D].
        bound_y: float32 [N], as round_vectors returned it for y; MASKED leaves a column out.
        scale: float32 [], as round_vectors got it.
        first: float32 [groups, M], as scan returned it, refined or not.
        second: float32 [groups, M], likewise.
        best_sq_distance: float64 [M], the least squared distances known. Changed.
        best_index: int64 [M], the columns that have them, or -1. Changed.
        group: the number of columns in a group.
        offset: the index of the first column.
        first_only: whether to measure only the one column of each row that has the least bound.
        any_will_do: whether rows that have an index stay as they are, since any column within the distance will do.
    """
    if len(x) and len(y):
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        with torch.cuda.device_of(x):
            decide_kernel[(len(x),)](
                x, x.stride(0), y, y.stride(0), bound_y, scale, first, second,
                best_sq_distance, best_index, len(x), len(y), len(first), x.shape[1], offset,
                GROUP=group, BLOCK_G=triton.next_power_of_2(len(first)), BLOCK_K=BLOCK_K,
                GROUP_BLOCK_K=GROUP_BLOCK // group, FIRST_ONLY=first_only, ANY=any_will_do, num_warps=NUM_WARPS,
            )  # fmt: skip


@decide.register_fake
def decide_fake(
    x: Tensor, y: Tensor, bound_y: Tensor, scale: Tensor, first: Tensor, second: Tensor,
    best_sq_distance: Tensor, best_index: Tensor, group: int, offset: int, first_only: bool, any_will_do: bool,
) -> None:  # fmt: skip
    """Nothing is returned."""


def decide_reference(
    x: Tensor, y: Tensor, bound_y: Tensor, best_sq_distance: Tensor, best_index: Tensor, offset: int
) -> tuple[Tensor, Tensor]:
    """What best_sq_distance and best_index become, in plain PyTorch: all pairs are measured."""
    rows, columns = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (x, y))
    sq_distances = (rows[:, None] - columns[None]).double().square().sum(2)
    sq_distances = torch.where((bound_y < MASKED / 10) & sq_distances.isfinite(), sq_distances, torch.inf)
    sq_distance = sq_distances.amin(1)
    index = (sq_distances <= sq_distance[:, None] * (1 + 1e-12)).byte().argmax(1) + offset
    is_nearer = sq_distance < best_sq_distance
    return torch.where(is_nearer, sq_distance, best_sq_distance), torch.where(is_nearer, index, best_index)
