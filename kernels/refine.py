"""The refinement: an accurate product, for groups in which the scan leaves many rows in doubt.

A row is in doubt about a group while the group's second bound is not above the row's least distance known: some column
other than the first may be nearer, and the bounds do not say which. decide.py then measures all columns of the group,
which suits a few rows. Where many rows of a tile are in doubt, this kernel multiplies the tile again, from float32 by
three TF32 products, and replaces the bounds by far tighter ones. All its other programs read a few numbers and end.

    bound(i, j) = |u_i|^2 + |u_j|^2 - 2 u_i . u_j - e (|u_i|^2 + |u_j|^2) <= s^2 |x_i - y_j|^2,  u = s (v - c)

The relative error e covers what three TF32 products drop (3 * 2^-20 of |u_i| |u_j|), the additions in parts of BLOCK_K
dimensions (3 * BLOCK_K of 2^-23 each; the parts add up to |u_i| |u_j| at most, by Cauchy and Schwarz) and of the parts,
and the rounding of the norms.
"""

import torch
import triton
import triton.language as tl
from einops import reduce, repeat
from torch import Tensor

from imletriton.kernels.launch import REFINE, generation
from imletriton.kernels.rounding import MASKED, MASKED_BOUND
from imletriton.kernels.scan import MEMBER_BITS, pack_member, swizzled_tile, two_least

FEW_DOUBTS = 4  # rows in doubt of a tile that are left to decide.py
MOST_DOUBTS = tl.constexpr(FEW_DOUBTS)  # the same, for kernels


@triton.jit
def load_centred(vectors_ptr, row, stride, offs_k, D, centre_ptr, scale):
    """s (v - c) of some rows, float32 [rows, BLOCK_K], 0 beyond dimension D.

    NaN becomes 0 and large values are clamped to 1e16, since they would spoil the sums; such vectors are masked.
    """
    value = tl.load(vectors_ptr + row[:, None] * stride + offs_k[None, :], mask=(offs_k < D)[None, :], other=0.0)
    value = (value.to(tl.float32) - tl.load(centre_ptr + offs_k, mask=offs_k < D, other=0.0)[None, :]) * scale
    value = tl.where((offs_k < D)[None, :] & (value == value), value, 0.0)
    return tl.minimum(tl.maximum(value, -1e16), 1e16)


@triton.jit(do_not_specialize=["M", "N"])  # one build serves all counts
def refine_kernel(
    x_ptr, stride_xm, y_ptr, stride_yn, centre_ptr, scale_ptr, sq_norm_x_ptr, sq_norm_y_ptr, bound_y_ptr,
    best_sq_distance_ptr, first_ptr, second_ptr, M, N, D, relative_error, one,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The two least of (1 - e) (|u_i|^2 + |u_j|^2) - 2 u_i . u_j for BLOCK_M rows i over the columns j of one group.

    Reads x [M, D], y [N, D], centre float32 [D], scale float32 [], sq_norm_x float32 [M], sq_norm_y and bound_y,
    float32 [N], best_sq_distance float64 [M]. Reads second, float32 [groups, M], to see whether more than FEW_DOUBTS
    of its rows are in doubt; only then it writes first and second, float32 [groups, M]. `one` is 1.0 (see below).
    """
    pid_m, group = swizzled_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, GROUP))
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    offs_out = group.to(tl.int64) * M + offs_m
    scale = tl.load(scale_ptr)
    limit = (
        tl.load(best_sq_distance_ptr + offs_m, mask=mask_m, other=-1.0) * scale.to(tl.float64) * scale.to(tl.float64)
    )
    scanned = tl.load(second_ptr + offs_out, mask=mask_m, other=MASKED_BOUND)
    in_doubt = (scanned.to(tl.float64) <= limit) & (scanned < MASKED_BOUND * 0.1)
    if tl.sum(in_doubt.to(tl.int32), 0) > MOST_DOUBTS:
        x_row = tl.minimum(offs_m, M - 1).to(tl.int64)
        x_part = tl.load(sq_norm_x_ptr + x_row) * (1 - relative_error)
        first = tl.full((BLOCK_M,), MASKED_BOUND, tl.float32)
        second = tl.full((BLOCK_M,), MASKED_BOUND, tl.float32)
        first_member = tl.zeros((BLOCK_M,), tl.int32)
        for start_n in range(0, GROUP, BLOCK_N):
            offs_n = group * GROUP + start_n + tl.arange(0, BLOCK_N)
            y_row = tl.minimum(offs_n, N - 1).to(tl.int64)
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for start_k in range(0, D, BLOCK_K):
                offs_k = start_k + tl.arange(0, BLOCK_K)
                x = load_centred(x_ptr, x_row, stride_xm, offs_k, D, centre_ptr, scale)
                y = load_centred(y_ptr, y_row, stride_yn, offs_k, D, centre_ptr, scale)
                # The factor keeps the compiler from accumulating inside the dot: each part is summed by itself, so the
                # total gathers few roundings.
                acc += tl.dot(x, tl.trans(y), input_precision="tf32x3") * one
            y_part = tl.load(sq_norm_y_ptr + y_row) * (1 - relative_error)
            masked = (tl.load(bound_y_ptr + y_row) > MASKED_BOUND * 0.1) | (offs_n >= N)
            bound = tl.maximum((x_part[:, None] - acc) + (y_part[None, :] - acc), 0.0)
            bound = tl.where(masked[None, :], MASKED_BOUND, bound)
            part_first, member = tl.min(bound, 1, return_indices=True)
            others = tl.where(tl.arange(0, BLOCK_N)[None, :] == member[:, None], MASKED_BOUND, bound)
            part_second = tl.min(others, 1)
            second = tl.minimum(tl.minimum(second, part_second), tl.maximum(first, part_first))
            first_member = tl.where(part_first < first, start_n + member, first_member)
            first = tl.minimum(first, part_first)
        tl.store(first_ptr + offs_out, pack_member(first, first_member), mask=mask_m)
        tl.store(second_ptr + offs_out, second, mask=mask_m)


def relative_error(d: int, block_k: int) -> float:
    """The e of the bound, for vectors of d dimensions that are multiplied block_k at a time."""
    return 2.0**-18 + (4 * block_k + 64 + 2 * d / block_k) * 2.0**-23


@torch.library.custom_op("imletriton::refine", mutates_args=("first", "second"))
def refine(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, sq_norm_y: Tensor, bound_y: Tensor,
    best_sq_distance: Tensor, first: Tensor, second: Tensor, group: int,
) -> None:  # fmt: skip
    """Tighten first and second in place, where many rows of a tile are in doubt about a group.

    Args:
        x: the rows' vectors, [M, D].
        y: the columns' vectors, [N, D].
        centre: float32 [D], as round_vectors got it.
        scale: float32 [], as round_vectors got it.
        sq_norm_x: float32 [M], as round_vectors returned it for x.
        sq_norm_y: float32 [N], as round_vectors returned it for y.
        bound_y: float32 [N], as round_vectors returned it for y; MASKED leaves a column out.
        best_sq_distance: float64 [M], the least squared distances known.
        first: float32 [groups, M], as scan returned it. Changed.
        second: float32 [groups, M], as scan returned it. Changed.
        group: the number of columns in a group.
    """
    if len(x) and len(y):
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        tile = REFINE[generation(x.device)]
        error = relative_error(x.shape[1], tile.block_k)
        with torch.cuda.device_of(x):
            refine_kernel[(triton.cdiv(len(x), tile.block_m) * triton.cdiv(len(y), group),)](
                x, x.stride(0), y, y.stride(0), centre, scale, sq_norm_x, sq_norm_y, bound_y,
                best_sq_distance, first, second, len(x), len(y), x.shape[1], error, 1.0,
                GROUP=group, BLOCK_M=tile.block_m, BLOCK_N=min(group, tile.block_n), BLOCK_K=tile.block_k,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip


@refine.register_fake
def refine_fake(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, sq_norm_y: Tensor, bound_y: Tensor,
    best_sq_distance: Tensor, first: Tensor, second: Tensor, group: int,
) -> None:  # fmt: skip
    """Nothing is returned."""


def refine_reference(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, bound_y: Tensor, best_sq_distance: Tensor,
    first: Tensor, second: Tensor, group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What first and second become, in plain PyTorch and float64.

    Returns:
        first without the member, float64; second, float64; the member, int64; and which of these are replaced, bool:
        [groups, M] each. The others are as scan returned them. The kernel's bounds may differ from the replaced ones by
        rounding, by at most e (|u_i|^2 + |u_j|^2).
    """
    tile = REFINE[generation(x.device)]
    u_x, u_y = (((v.double() - centre) * scale).nan_to_num(0.0, 1e16, -1e16) for v in (x, y))
    sq_norms = u_x.square().sum(1)[:, None] + u_y.square().sum(1)
    bounds = (sq_norms * (1 - relative_error(x.shape[1], tile.block_k)) - 2 * u_x @ u_y.T).clamp(min=0)
    refined_first, refined_second, refined_member = two_least(torch.where(bound_y > MASKED / 10, MASKED, bounds), group)
    packed = first.view(torch.int32)
    scanned_first, scanned_member = (packed & ~MEMBER_BITS).view(torch.float32).double(), packed & MEMBER_BITS
    in_doubt = (second <= best_sq_distance * scale.double() ** 2) & (second < MASKED / 10)
    padded = torch.nn.functional.pad(in_doubt.int(), (0, -len(x) % tile.block_m))
    doubts = reduce(padded, "group (tile row) -> group tile", "sum", row=tile.block_m)
    replaced = repeat(doubts > FEW_DOUBTS, "group tile -> group (tile row)", row=tile.block_m)[:, : len(x)]
    return (
        torch.where(replaced, refined_first, scanned_first),
        torch.where(replaced, refined_second, second.double()),
        torch.where(replaced, refined_member, scanned_member.long()),
        replaced,
    )
