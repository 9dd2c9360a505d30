"""The decision: candidates of the products are measured, from differences, until no other column can be nearer.

    best_i = min over the columns j with bound(i, j) <= best_i of |x_i - y_j|^2

One program a row. It measures the first of each group whose bound is not above the best, nearest bound first, then all
columns of the groups that are still in doubt (see refine.py). Differences are float32, hence one rounding each, their
squares are summed in float64: a distance is good to 2^-23, close pairs and common offsets included. Of columns equally
near, to 10^-12, the lowest index wins, so the result does not depend on the order of groups.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.rounding import MASKED, NONE
from imletriton.kernels.scan import PLACE_BITS

PLACES = tl.constexpr(PLACE_BITS)
TIE = tl.constexpr(1e-12)
DEPTH = 512  # values measured at once, of a vector
AREA = 1024  # and of all vectors of a group
WARPS = 2


@triton.jit
def nearer(sq, index, best, best_index):
    """Whether (sq, index) comes before (best, best_index). A best without an index, -1, must be undercut."""
    return (sq < best * (1 - TIE)) | ((sq <= best * (1 + TIE)) & (index < best_index))


@triton.jit
def still_open(bound, best, best_index, scaled, ANY: tl.constexpr):
    """Which groups' bounds leave room for a nearer column; none where any will do and one is known."""
    limit = tl.where(best_index < 0, best, -1.0) if ANY else best
    return (bound < NONE * 0.1) & (bound.to(tl.float64) <= limit * scaled)


@triton.jit
def decide_kernel(
    x, x_stride, y, y_stride, bound_y, scale, first, second, best, index, rows, columns, groups, d, offset,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
    FIRST_ONLY: tl.constexpr, ANY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scaled = tl.load(scale).to(tl.float64) * tl.load(scale).to(tl.float64)
    my_best = tl.load(best + row)
    my_index = tl.load(index + row)
    group = tl.arange(0, GROUPS)
    of_mine = group.to(tl.int64) * rows + row
    packed = tl.load(first + of_mine, mask=group < groups, other=NONE).to(tl.int32, bitcast=True)
    bound = (packed & ~PLACES).to(tl.float32, bitcast=True)
    nearest = group * GROUP + (packed & PLACES)
    # Groups leave by getting the bound NONE.
    while tl.max(still_open(bound, my_best, my_index, scaled, ANY).to(tl.int32), 0) > 0:
        pick = tl.argmin(bound, 0)
        column = tl.sum(tl.where(group == pick, nearest, 0), 0)
        sq = tl.zeros((DEPTH,), tl.float64)
        for start in range(0, d, DEPTH):
            at = start + tl.arange(0, DEPTH)
            a = tl.load(x + row * x_stride + at, mask=at < d, other=0.0).to(tl.float32)
            b = tl.load(y + column.to(tl.int64) * y_stride + at, mask=at < d, other=0.0).to(tl.float32)
            difference = (a - b).to(tl.float64)
            sq += difference * difference
        distance = tl.sum(sq, 0)
        better = nearer(distance, column + offset, my_best, my_index)
        my_best = tl.where(better, distance, my_best)
        my_index = tl.where(better, column + offset, my_index)
        bound = tl.where((group == pick) | FIRST_ONLY, NONE, bound)
    if not FIRST_ONLY:
        bound = tl.load(second + of_mine, mask=group < groups, other=NONE)
        while tl.max(still_open(bound, my_best, my_index, scaled, ANY).to(tl.int32), 0) > 0:
            pick = tl.argmin(bound, 0)
            member = pick * GROUP + tl.arange(0, GROUP)
            masked = tl.load(bound_y + member, mask=member < columns, other=NONE) > NONE * 0.1
            all_sq = tl.zeros((GROUP,), tl.float64)
            for start in range(0, d, WIDE):
                at = start + tl.arange(0, WIDE)
                inside = ~masked[:, None] & (at < d)[None, :]
                a = tl.load(x + row * x_stride + at, mask=at < d, other=0.0).to(tl.float32)
                b = tl.load(y + member.to(tl.int64)[:, None] * y_stride + at[None, :], mask=inside, other=0.0)
                difference = tl.where(inside, a[None, :] - b.to(tl.float32), 0.0).to(tl.float64)
                all_sq += tl.sum(difference * difference, 1)
            all_sq = tl.where(masked, float("inf"), all_sq)
            distance = tl.min(all_sq, 0)
            column = tl.min(tl.where(all_sq <= distance * (1 + TIE), member, 0x7FFFFFFF), 0)
            better = nearer(distance, column + offset, my_best, my_index)
            my_best = tl.where(better, distance, my_best)
            my_index = tl.where(better, column + offset, my_index)
            bound = tl.where(group == pick, NONE, bound)
    tl.store(best + row, my_best)
    tl.store(index + row, my_index)


@torch.library.custom_op("imletriton::decide", mutates_args=("best", "index"))
def decide(
    x: Tensor, y: Tensor, bound_y: Tensor, scale: Tensor, first: Tensor, second: Tensor, best: Tensor, index: Tensor,
    group: int, offset: int, first_only: bool, any_will_do: bool,
) -> None:  # fmt: skip
    """Lower best, float64 [rows], and set index, int64 [rows], where a column of y is nearer to a row of x.

    first, second: float32 [groups, rows] of scan, refined or not. offset: the index of y's first vector.
    first_only: measure one candidate a row at most. any_will_do: let rows that have an index be.
    """
    rows, columns, d = len(x), len(y), x.shape[1]
    if rows and columns:
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        with torch.cuda.device_of(x):
            decide_kernel[(rows,)](
                x, x.stride(0), y, y.stride(0), bound_y, scale, first, second, best, index, rows, columns,
                len(first), d, offset,
                GROUP=group, GROUPS=triton.next_power_of_2(len(first)), DEPTH=DEPTH, WIDE=AREA // group,
                FIRST_ONLY=first_only, ANY=any_will_do, num_warps=WARPS,
            )  # fmt: skip


@decide.register_fake
def decide_like(
    x: Tensor, y: Tensor, bound_y: Tensor, scale: Tensor, first: Tensor, second: Tensor, best: Tensor, index: Tensor,
    group: int, offset: int, first_only: bool, any_will_do: bool,
) -> None:  # fmt: skip
    return None


def decide_reference(
    x: Tensor, y: Tensor, bound_y: Tensor, best: Tensor, index: Tensor, offset: int
) -> tuple[Tensor, Tensor]:
    """What best and index become, in plain PyTorch: all pairs measured."""
    wide = (torch.promote_types(v.dtype, torch.float32) for v in (x, y))
    sq = (x.to(next(wide))[:, None] - y.to(next(wide))[None]).double().square().sum(2)
    sq = torch.where((bound_y < MASKED / 10) & sq.isfinite(), sq, torch.inf)
    least = sq.amin(1)
    place = (sq <= least[:, None] * (1 + 1e-12)).byte().argmax(1) + offset
    better = least < best
    return torch.where(better, least, best), torch.where(better, place, index)
