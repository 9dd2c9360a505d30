"""The refinement: an accurate product, for groups in which the scan leaves many rows in doubt.

A row is in doubt about a group while the group's second bound is not above the row's least distance known: some column
outside of the first pair may be nearer, and the bounds do not say which. decide.py then measures all columns of the
group, which suits a few rows. Where many rows of a tile are in doubt, it puts the tile on a list. The tiles of the list
are multiplied again, with vectors of twice the precision, and get far tighter bounds.

A centred and scaled vector u = s (v - c) is split into two float16 vectors, of which three products are taken:

    u = h + l + r,  h = fl16(u),  l = fl16(u - h),  |r_k| <= 2^-22 |u_k| + 2^-25
    product = h_i . h_j + h_i . l_j + l_i . h_j
    bound(i, j) = (1 - e) (|u_i|^2 + |u_j|^2) - 2 product - 2^-26 K <= s^2 |x_i - y_j|^2

The relative error e covers what the products drop, l_i . l_j and all with r, which is at most
1.1 * 2^-20 (|u_i|^2 + |u_j|^2) + 2^-26 K by Young's inequality; the additions in parts of 64 dimensions (192 of 2^-23
each, since tensor cores cut off instead of rounding; by Cauchy and Schwarz the parts add up to |u_i| |u_j| at most) and
those of the parts; and the rounding of the norms. Vectors too long for float16 keep their bounds of rounding.py, and
their h and l are 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import multiprocessors, on_device_of, operator, refine_tile, returns_nothing
from imletriton.kernels.rounding import LONGEST_HALF, MASKED, MASKED_BOUND, load_centred, rounded_dimension
from imletriton.kernels.scan import MEMBER_MASK, merge_two, pack_member, two_greatest_pairs, two_least

SPLIT = tl.constexpr(64)  # dimensions whose h and l lie side by side: h of the first 64, l of them, h of the next, ...
SPLIT_BLOCK_M, SPLIT_WARPS = 16, 4


@triton.jit
def split_rows(split_ptr, vectors_ptr, stride, start_m, M, D, K, centre_ptr, scale, sq_norm_ptr, BLOCK_M: tl.constexpr):
    """Split BLOCK_M vectors from start_m on: write h and l, float16 [BLOCK_M, K / 64, 2, 64]."""
    offs_m = start_m + tl.arange(0, BLOCK_M)
    row = tl.where(offs_m < M, offs_m, 0).to(tl.int64)
    fits_half = tl.load(sq_norm_ptr + row) < LONGEST_HALF * LONGEST_HALF
    for start_k in range(0, K, SPLIT):
        offs_k = start_k + tl.arange(0, SPLIT)
        value, _ = load_centred(vectors_ptr, row, stride, offs_k, fits_half, D, centre_ptr, scale)
        high = value.to(tl.float16)
        low = (value - high.to(tl.float32)).to(tl.float16)
        ptrs = split_ptr + row[:, None] * (2 * K) + (start_k + offs_k)[None, :]
        tl.store(ptrs, high, mask=(offs_m < M)[:, None])
        tl.store(ptrs + SPLIT, low, mask=(offs_m < M)[:, None])


@triton.jit(do_not_specialize=["stride_xm", "stride_yn", "M", "N", "D"],
            do_not_specialize_on_alignment=["x_ptr", "y_ptr"])  # fmt: skip
def split_kernel(
    x_ptr, stride_xm, sq_norm_x_ptr, split_x_ptr, y_ptr, stride_yn, sq_norm_y_ptr, split_y_ptr, centre_ptr, scale_ptr,
    crowded_ptr, M, N, D, K, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Split BLOCK_M rows or columns into h and l.

    Reads x [M, D], y [N, D], centre float32 [D], scale float32 [], sq_norm_x float32 [M] and sq_norm_y float32 [N].
    Where there is a list of tiles, crowded, and it is empty, nothing is done. Writes split_x and split_y, float16
    [M or N, K / 64, 2, 64].
    """
    crowded = 1
    if crowded_ptr is not None:
        crowded = tl.load(crowded_ptr)
    if crowded > 0:
        scale = tl.load(scale_ptr)
        blocks_x = tl.cdiv(M, BLOCK_M)
        if tl.program_id(0) < blocks_x:
            start = tl.program_id(0) * BLOCK_M
            split_rows(split_x_ptr, x_ptr, stride_xm, start, M, D, K, centre_ptr, scale, sq_norm_x_ptr, BLOCK_M)
        else:
            start = (tl.program_id(0) - blocks_x) * BLOCK_M
            split_rows(split_y_ptr, y_ptr, stride_yn, start, N, D, K, centre_ptr, scale, sq_norm_y_ptr, BLOCK_M)


@triton.jit
def accurate_product(x_ptrs, y_ptrs, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """h_i . h_j + h_i . l_j + l_i . h_j, float32 [BLOCK_M, BLOCK_N].

    x_ptrs [BLOCK_M, 64] and y_ptrs [64, BLOCK_N] point to h of the first 64 dimensions of the rows and columns.
    """
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, SPLIT):
        high_x, low_x = tl.load(x_ptrs), tl.load(x_ptrs + SPLIT)
        high_y, low_y = tl.load(y_ptrs), tl.load(y_ptrs + SPLIT)
        # Each part is summed by itself and added once, so that the total gathers few roundings.
        total += tl.dot(low_x, high_y, tl.dot(high_x, low_y, tl.dot(high_x, high_y)))
        x_ptrs += 2 * SPLIT
        y_ptrs += 2 * SPLIT
    return total


@triton.jit
def own_part(sq_norm, bound, relative_error):
    """What a vector contributes to its bounds: (1 - e) |u|^2; for one too long for float16 its bound, or MASKED / 2."""
    part = tl.where(sq_norm < LONGEST_HALF * LONGEST_HALF, sq_norm * (1 - relative_error), bound)
    return tl.where(bound > MASKED_BOUND * 0.1, MASKED_BOUND * 0.5, part)


@triton.jit(do_not_specialize=["M", "N"])
def refine_kernel(
    split_x_ptr, split_y_ptr, sq_norm_x_ptr, bound_x_ptr, sq_norm_y_ptr, bound_y_ptr, crowded_ptr, first_ptr,
    second_ptr, M, N, K, relative_error, slack,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The two least bounds of BLOCK_M rows over the pairs of columns of one group, for every tile of a list.

    Reads split_x float16 [M, K / 64, 2, 64], split_y float16 [N, K / 64, 2, 64], sq_norm_x and bound_x, float32 [M],
    sq_norm_y and bound_y, float32 padded to whole groups, and crowded int32: how many tiles there are, and each one's
    number, group x tiles of rows + tile of rows. Writes those tiles' parts of first and second, float32 [groups, M].
    """
    num_pid_m = tl.cdiv(M, BLOCK_M)
    offs_k = tl.arange(0, SPLIT)
    for number in range(tl.program_id(0), tl.load(crowded_ptr), tl.num_programs(0)):
        tile = tl.load(crowded_ptr + 1 + number)
        group, pid_m = tile // num_pid_m, tile % num_pid_m
        offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        row = tl.minimum(offs_m, M - 1)
        part_x = own_part(tl.load(sq_norm_x_ptr + row), tl.load(bound_x_ptr + row), relative_error) - slack
        first = tl.full((BLOCK_M,), -MASKED_BOUND, tl.float32)
        second = tl.full((BLOCK_M,), -MASKED_BOUND, tl.float32)
        member = tl.zeros((BLOCK_M,), tl.int32)
        for start_n in range(0, GROUP, BLOCK_N):
            offs_n = group * GROUP + start_n + tl.arange(0, BLOCK_N)
            column = tl.minimum(offs_n, N - 1).to(tl.int64)
            x_ptrs = split_x_ptr + row.to(tl.int64)[:, None] * (2 * K) + offs_k[None, :]
            y_ptrs = split_y_ptr + column[None, :] * (2 * K) + offs_k[:, None]
            product = accurate_product(x_ptrs, y_ptrs, K, BLOCK_M, BLOCK_N)
            part_y = own_part(tl.load(sq_norm_y_ptr + offs_n), tl.load(bound_y_ptr + offs_n), relative_error)
            bounds = tl.maximum((part_x[:, None] - product) + (part_y[None, :] - product), 0.0)
            part_first, part_second = two_greatest_pairs(-bounds, M >> 31, BLOCK_M, BLOCK_N)
            member = tl.where(
                part_first > first, start_n // 2 + (part_first.to(tl.int32, bitcast=True) & MEMBER_MASK), member
            )
            first, second = merge_two(first, second, part_first, part_second)
        offs_out = group.to(tl.int64) * M + offs_m
        tl.store(first_ptr + offs_out, pack_member(-first, member, 0), mask=mask_m)
        tl.store(second_ptr + offs_out, -second * (1 - 2.0**-15), mask=mask_m)  # less what its member's bits may add


def relative_error(k: int) -> float:
    """The e of the bound, for vectors of k dimensions."""
    return float(2.0**-18 + (4 * SPLIT.value + 64 + 2 * k / SPLIT.value) * 2.0**-23)


def split(
    x: Tensor, sq_norm_x: Tensor, y: Tensor, sq_norm_y: Tensor, centre: Tensor, scale: Tensor, crowded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Split rows x [M, D] and columns y [N, D] into h and l, side by side: float16 [M, 2 K] and [N, 2 K].

    One launch. Where `crowded` is given and its first number is 0, the results have any content.
    """
    x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
    (m, d), n, k = x.shape, len(y), rounded_dimension(x.shape[1])
    split_x, split_y = (x.new_empty((len(v), 2 * k), dtype=torch.float16) for v in (x, y))
    with on_device_of(x):
        split_kernel[(triton.cdiv(m, SPLIT_BLOCK_M) + triton.cdiv(n, SPLIT_BLOCK_M),)](
            x, x.stride(0), sq_norm_x, split_x, y, y.stride(0), sq_norm_y, split_y, centre, scale, crowded,
            m, n, d, k, BLOCK_M=SPLIT_BLOCK_M, num_warps=SPLIT_WARPS,
        )  # fmt: skip
    return split_x, split_y


@operator(returns_nothing, "first", "second")
def refine(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, bound_x: Tensor, sq_norm_y: Tensor,
    bound_y: Tensor, crowded: Tensor, first: Tensor, second: Tensor, block_m: int, group: int,
) -> None:  # fmt: skip
    """Tighten first and second in place for the tiles of a list: two launches, which end at once where it is empty.

    Args:
        x: the rows' vectors, [M, D].
        y: the columns' vectors, [N, D].
        centre: float32 [D], as round_vectors got it.
        scale: float32 [], as round_vectors got it.
        sq_norm_x: float32 [M or more], as round_vectors returned it for x.
        bound_x: float32 [M or more], likewise.
        sq_norm_y: float32, padded to whole groups, as round_vectors returned it for y.
        bound_y: float32, likewise; MASKED leaves a column out.
        crowded: int32 [1 + groups x tiles of rows], the list, as decide made it: the number of tiles and their numbers.
        first: float32 [groups, M], as scan returned it. Changed.
        second: float32 [groups, M], as scan returned it. Changed.
        block_m: the number of rows in a tile, as scan got it.
        group: the number of columns in a group.
    """
    if len(x) and len(y):
        tile = refine_tile(x.device, block_m)
        split_x, split_y = split(x, sq_norm_x, y, sq_norm_y, centre, scale, crowded)
        k = split_x.shape[1] // 2
        with on_device_of(x):
            refine_kernel[(min(len(crowded) - 1, multiprocessors(x.device)),)](
                split_x, split_y, sq_norm_x, bound_x, sq_norm_y, bound_y, crowded, first, second,
                len(x), len(y), k, relative_error(k), k * 2.0**-26,
                GROUP=group, BLOCK_M=block_m, BLOCK_N=min(group, tile.block_n),
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip


def refine_reference(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, bound_x: Tensor, bound_y: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What first and second become in the tiles that are listed, in plain PyTorch and float64, for all tiles.

    The bounds are without padding.

    Returns:
        first without the member, float64; second, float64; and the member, int64: [groups, M] each. The kernel's bounds
        may differ by rounding, by at most e (|u_i|^2 + |u_j|^2) + 2^-15 of the bound.
    """
    k = rounded_dimension(x.shape[1])
    u_x, u_y = (((v.double() - centre) * scale).nan_to_num(0.0, 1e16, -1e16).clamp(-1e16, 1e16) for v in (x, y))
    own = []
    for u, bound in ((u_x, bound_x), (u_y, bound_y)):
        sq_norm = u.square().sum(1)
        fits_half = sq_norm < LONGEST_HALF.value**2
        u *= fits_half[:, None]
        part = torch.where(fits_half, sq_norm * (1 - relative_error(k)), bound.double())
        own.append(torch.where(bound > MASKED / 10, MASKED / 2, part))
    bounds = (own[0][:, None] + own[1] - 2 * u_x @ u_y.T - k * 2.0**-26).clamp(min=0)
    return two_least(bounds, group)
