"""The decision: the scan's candidates are measured, from differences, until no other column can be nearer.

    best_i = the `top` least of |x_i - y_j|^2 over the columns j with bound(i, j) <= max best_i

One program decides one row. It measures the first pair of each group whose bound is not above the greatest of the best,
in the order of their bounds, and then all columns of the groups that are still in doubt (see refine.py). Differences
are float32, one rounding each, and their squares are summed in float64, so a squared distance is right to 2^-23, also
between vectors that nearly coincide or share a large offset. Of columns equally near, to 10^-12, the lowest index wins,
so the result does not depend on the order in which groups are measured.

The kernel runs twice. The first time, a row measures `top` pairs at most and notes the groups that remain in doubt;
most rows end there. The second time, after the refinement, the others end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator, returns_nothing
from imletriton.kernels.rounding import MASKED, MASKED_BOUND
from imletriton.kernels.scan import MEMBER_MASK, PAIR

TIE = tl.constexpr(1e-12)
MEASURED = 1024  # values at once where columns are measured: columns times dimensions
MOST_GROUPS = 512  # that a program keeps in registers
MOST_DOUBTS = tl.constexpr(4)  # rows in doubt about a group that a tile may have without being refined
PAIR_COLUMNS = tl.constexpr(PAIR)
NONE = tl.constexpr(2**62)  # greater than any index
NUM_WARPS = 4


@triton.jit
def nearer(sq_distance, index, best_sq_distance, best_index):
    """Whether (sq_distance, index) goes before the best: sq_distance < best, or equal to 10^-12 and index < best_index.

    A best that has no index, -1, must be undercut.
    """
    return (sq_distance < best_sq_distance * (1 - TIE)) | (
        (sq_distance <= best_sq_distance * (1 + TIE)) & (index < best_index)
    )


@triton.jit
def last_of(best_sq_distance, best_index):
    """The last of a row's best, float64 and int64 [BLOCK_TOP], which a nearer column replaces: its two values.

    Of those equally far, the last one is that with the greatest index.
    """
    last = tl.max(best_sq_distance, 0)
    return last, tl.max(tl.where(best_sq_distance >= last * (1 - TIE), best_index, -2), 0)


@triton.jit
def nearest_of(sq_distances, index):
    """The least of sq_distances, float64 [COLUMNS], and the lowest index, int64, of those equal to 10^-12."""
    least = tl.min(sq_distances, 0)
    return least, tl.min(tl.where(sq_distances <= least * (1 + TIE), index, NONE), 0)


@triton.jit
def measure(
    x_ptr, y_ptr, stride_yn, bound_y_ptr, columns, N, D, offset, best_sq_distance, best_index,
    COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_TOP: tl.constexpr,
):  # fmt: skip
    """Measure the distances of the row at x_ptr to COLUMNS columns, and put the nearest ones among its best.

    Returns best_sq_distance and best_index, [BLOCK_TOP].
    """
    admissible = columns < N
    admissible = admissible & (tl.load(bound_y_ptr + columns, mask=admissible, other=0.0) < MASKED_BOUND * 0.1)
    acc = tl.zeros((COLUMNS, BLOCK_K), tl.float64)
    for start_k in range(0, D, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = admissible[:, None] & (offs_k < D)[None, :]
        x = tl.load(x_ptr + offs_k, mask=offs_k < D, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + columns.to(tl.int64)[:, None] * stride_yn + offs_k[None, :], mask=mask, other=0.0)
        difference = tl.where(mask, x[None, :] - y.to(tl.float32), 0.0).to(tl.float64)
        acc += difference * difference
    index = columns.to(tl.int64) + offset
    known = tl.sum((index[:, None] == best_index[None, :]).to(tl.int32), 1) > 0
    sq_distances = tl.where(admissible & ~known, tl.sum(acc, 1), float("inf"))
    sq_distance, nearest = nearest_of(sq_distances, index)
    last, last_index = last_of(best_sq_distance, best_index)
    places = tl.arange(0, BLOCK_TOP)
    while nearer(sq_distance, nearest, last, last_index):
        is_last = (best_sq_distance >= last * (1 - TIE)) & (best_index == last_index)
        place = tl.min(tl.where(is_last, places, BLOCK_TOP), 0)  # where there is no index yet, several are the last
        best_sq_distance = tl.where(places == place, sq_distance, best_sq_distance)
        best_index = tl.where(places == place, nearest, best_index)
        sq_distances = tl.where(index == nearest, float("inf"), sq_distances)
        sq_distance, nearest = nearest_of(sq_distances, index)
        last, last_index = last_of(best_sq_distance, best_index)
    return best_sq_distance, best_index


@triton.jit
def still_open(bound, best_sq_distance, best_index, sq_scale, ANY: tl.constexpr):
    """Which groups, bool [BLOCK_G], may hold a nearer column: bound <= s^2 max best.

    bound is float32 [BLOCK_G] and sq_scale s^2. With ANY, no group is open once the row has an index.
    """
    limit, _ = last_of(best_sq_distance, best_index)
    if ANY:
        limit = tl.where(tl.max(best_index, 0) < 0, limit, -1.0)
    return (bound < MASKED_BOUND * 0.1) & (bound.to(tl.float64) <= limit * sq_scale)


@triton.jit
def is_any(flags):
    """Whether any of the flags, bool [BLOCK_G], is set."""
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit(do_not_specialize=["stride_xm", "stride_yn", "M", "N", "num_groups", "num_tiles", "D", "offset", "top"],
            do_not_specialize_on_alignment=["x_ptr", "y_ptr", "bound_y_ptr"])  # fmt: skip
def decide_kernel(
    x_ptr, stride_xm, y_ptr, stride_yn, bound_y_ptr, scale_ptr, first_ptr, second_ptr,
    best_sq_distance_ptr, best_index_ptr, open_ptr, doubts_ptr, crowded_ptr,
    M, N, num_groups, num_tiles, D, offset, top,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_TOP: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP_BLOCK_K: tl.constexpr, AT_FIRST: tl.constexpr, ANY: tl.constexpr,
):  # fmt: skip
    """best_i = the top least of best_i and |x_i - y_j|^2 over all columns j for one row i, with these columns' indices.

    Reads x [M, D], y [N, D], bound_y float32, padded to whole groups, scale float32 [], first and second, float32
    [num_groups, M]. Reads and writes best_sq_distance float64 [M, top] and best_index int64 [M, top], which is
    j + offset. BLOCK_G is num_groups or more, and BLOCK_TOP top or more. BLOCK_K dimensions are read at once of a pair
    of columns, GROUP_BLOCK_K of a whole group's. ANY stops as soon as the row has an index.

    AT_FIRST, it measures top pairs and writes open, int8 [M], whether that leaves a group in doubt. It counts the rows
    in doubt in doubts, int32 [num_groups, num_tiles], and lists the tiles of BLOCK_M rows with more than MOST_DOUBTS of
    them in crowded, int32: how many, then num_tiles group + tile of each. Otherwise it decides the rows that are open.
    """
    row = tl.program_id(0).to(tl.int64)
    if AT_FIRST or tl.load(open_ptr + row) > 0:
        x_ptr += row * stride_xm
        sq_scale = tl.load(scale_ptr).to(tl.float64) * tl.load(scale_ptr).to(tl.float64)
        places = tl.arange(0, BLOCK_TOP)
        # Places beyond `top` are nearer than any column, so they are never the last.
        best_sq_distance = tl.load(best_sq_distance_ptr + row * top + places, mask=places < top, other=-1.0)
        best_index = tl.load(best_index_ptr + row * top + places, mask=places < top, other=-1)
        offs_g = tl.arange(0, BLOCK_G)
        offs_bound = offs_g.to(tl.int64) * M + row
        packed = tl.load(first_ptr + offs_bound, mask=offs_g < num_groups, other=MASKED_BOUND)
        packed = packed.to(tl.int32, bitcast=True)
        bound = (packed & ~MEMBER_MASK).to(tl.float32, bitcast=True)
        first_column = offs_g * GROUP + (packed & MEMBER_MASK) * PAIR_COLUMNS
        second_bound = tl.load(second_ptr + offs_bound, mask=offs_g < num_groups, other=MASKED_BOUND)
        left = top if AT_FIRST else num_groups
        # A group that has been measured gets the bound MASKED, so that the loop ends.
        while is_any(still_open(bound, best_sq_distance, best_index, sq_scale, ANY)) & (left > 0):
            group = tl.argmin(bound, 0)
            column = tl.sum(tl.where(offs_g == group, first_column, 0), 0)
            best_sq_distance, best_index = measure(
                x_ptr, y_ptr, stride_yn, bound_y_ptr, column + tl.arange(0, PAIR_COLUMNS), N, D, offset,
                best_sq_distance, best_index, PAIR_COLUMNS, BLOCK_K, BLOCK_TOP,
            )  # fmt: skip
            bound = tl.where(offs_g == group, MASKED_BOUND, bound)
            left -= 1
        if AT_FIRST:
            in_doubt = still_open(second_bound, best_sq_distance, best_index, sq_scale, ANY)
            is_open = is_any(in_doubt | still_open(bound, best_sq_distance, best_index, sq_scale, ANY))
            tl.store(open_ptr + row, is_open.to(tl.int8))
            tile = offs_g * num_tiles + (row // BLOCK_M).to(tl.int32)
            # The row that makes a tile crowded puts it on the list. The order of the list does not matter.
            count = tl.atomic_add(doubts_ptr + tile, tl.full((BLOCK_G,), 1, tl.int32), mask=in_doubt, sem="relaxed")
            listed = in_doubt & (count == MOST_DOUBTS)
            place = tl.atomic_add(
                crowded_ptr + offs_g * 0, tl.full((BLOCK_G,), 1, tl.int32), mask=listed, sem="relaxed"
            )
            tl.store(crowded_ptr + 1 + place, tile, mask=listed)
        else:
            while is_any(still_open(second_bound, best_sq_distance, best_index, sq_scale, ANY)):
                group = tl.argmin(second_bound, 0)
                best_sq_distance, best_index = measure(
                    x_ptr, y_ptr, stride_yn, bound_y_ptr, group * GROUP + tl.arange(0, GROUP), N, D, offset,
                    best_sq_distance, best_index, GROUP, GROUP_BLOCK_K, BLOCK_TOP,
                )  # fmt: skip
                second_bound = tl.where(offs_g == group, MASKED_BOUND, second_bound)
        tl.store(best_sq_distance_ptr + row * top + places, best_sq_distance, mask=places < top)
        tl.store(best_index_ptr + row * top + places, best_index, mask=places < top)


@operator(returns_nothing, "best_sq_distance", "best_index", "still_open", "doubts", "crowded")
def decide(
    x: Tensor, y: Tensor, bound_y: Tensor, scale: Tensor, first: Tensor, second: Tensor,
    best_sq_distance: Tensor, best_index: Tensor, still_open: Tensor, doubts: Tensor, crowded: Tensor,
    block_m: int, group: int, offset: int, at_first: bool, any_will_do: bool,
) -> None:  # fmt: skip
    """Lower best_sq_distance and set best_index, in place, where a column is nearer to a row.

    Args:
        x: the rows' vectors, [M, D].
        y: the columns' vectors, [N, D]; at most MOST_GROUPS groups.
        bound_y: float32, padded to whole groups, as round_vectors returned it for y; MASKED leaves a column out.
        scale: float32 [], as round_vectors got it.
        first: float32 [groups, M], as scan returned it, refined or not.
        second: float32 [groups, M], likewise.
        best_sq_distance: float64 [M, top], the least squared distances known, in any order. Changed.
        best_index: int64 [M, top], the columns that have them, or -1. Changed.
        still_open: int8 [M], the rows that the first time left in doubt. Changed by it.
        doubts: int32 [groups x tiles of rows], as scan returned it: the first time counts rows in doubt. Changed.
        crowded: int32 [1 + groups x tiles of rows], as scan returned it: the first time lists tiles. Changed.
        block_m: the number of rows in a tile.
        group: the number of columns in a group.
        offset: the index of the first column.
        at_first: whether this is the first time, which measures `top` pairs of each row.
        any_will_do: whether rows that have an index stay as they are, since any column within the distance will do.
    """
    if len(x) and len(y):
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        top = best_index.shape[1]
        with on_device_of(x):
            decide_kernel[(len(x),)](
                x, x.stride(0), y, y.stride(0), bound_y, scale, first, second,
                best_sq_distance, best_index, still_open, doubts, crowded,
                len(x), len(y), len(first), triton.cdiv(len(x), block_m), x.shape[1], offset, top,
                GROUP=group, BLOCK_M=block_m, BLOCK_G=MOST_GROUPS, BLOCK_TOP=triton.next_power_of_2(top),
                BLOCK_K=MEASURED // PAIR, GROUP_BLOCK_K=MEASURED // group, AT_FIRST=at_first, ANY=any_will_do,
                num_warps=NUM_WARPS,
            )  # fmt: skip


def decide_reference(
    x: Tensor, y: Tensor, bound_y: Tensor, best_sq_distance: Tensor, best_index: Tensor, offset: int
) -> tuple[Tensor, Tensor]:
    """What best_sq_distance and best_index become, in plain PyTorch, sorted: all pairs are measured."""
    rows, columns = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (x, y))
    sq_distances = (rows[:, None] - columns[None]).double().square().sum(2)
    sq_distances = torch.where((bound_y < MASKED / 10) & sq_distances.isfinite(), sq_distances, torch.inf)
    both = torch.cat([best_sq_distance, sq_distances], 1)
    indices = torch.cat([best_index, torch.arange(len(y), device=y.device).expand(len(x), -1) + offset], 1)
    order = both.argsort(dim=1, stable=True)[:, : best_index.shape[1]]
    sq_distance = both.gather(1, order)
    return sq_distance, torch.where(sq_distance.isinf(), -1, indices.gather(1, order))
