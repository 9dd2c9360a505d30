"""All pairs within a radius: counted, or written down.

    |x_i - y_j|^2 <= R_j        for rows i and columns j, R_j the square of the column's radius

An accurate product bounds the squared distance of each pair from below and from above (see refine.py):

    (1 - e) n - 2 product - q <= s^2 |x_i - y_j|^2 <= (1 + e) n - 2 product + q,  n = |u_i|^2 + |u_j|^2,  q = 2^-26 K

Pairs whose bounds do not tell on which side of the radius they lie are measured one by one, from differences, as in
decide.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator, returns_nothing, within_tile
from imletriton.kernels.refine import SPLIT, accurate_product, own_part, relative_error, split
from imletriton.kernels.rounding import LONGEST_HALF, MASKED_BOUND
from imletriton.kernels.scan import swizzled_tile

BLOCK_K = 512  # dimensions at once where a pair is measured


@triton.jit(do_not_specialize=["stride_xm", "stride_yn", "M", "N", "D", "total", "offset", "room"],
            do_not_specialize_on_alignment=["x_ptr", "y_ptr"])  # fmt: skip
def within_kernel(
    x_ptr, stride_xm, y_ptr, stride_yn, split_x_ptr, split_y_ptr, sq_norm_x_ptr, bound_x_ptr, sq_norm_y_ptr,
    bound_y_ptr, sq_radius_ptr, scale_ptr, count_ptr, code_ptr, M, N, D, K, total, offset, room, relative_error, slack,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """For BLOCK_M rows and BLOCK_N columns, count_i += the number of pairs within the radius; or their codes.

    Reads x [M, D], y [N, D], split_x float16 [M, K / 64, 2, 64], split_y float16 [N, K / 64, 2, 64], sq_norm_x and
    bound_x, float32 [M], sq_norm_y and bound_y, float32 [N], sq_radius float64 [N] and scale float32 []. Adds to count,
    int64 [M]. With CODES, count is int64 [], the number of codes so far, and code int64 [room] receives
    i total + j + offset in any order, as far as there is room.
    """
    pid_m, pid_n = swizzled_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    local_m, local_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offs_m, offs_n = pid_m * BLOCK_M + local_m, pid_n * BLOCK_N + local_n
    row, column = tl.minimum(offs_m, M - 1).to(tl.int64), tl.minimum(offs_n, N - 1).to(tl.int64)
    offs_k = tl.arange(0, SPLIT)
    x_ptrs = split_x_ptr + row[:, None] * (2 * K) + offs_k[None, :]
    y_ptrs = split_y_ptr + column[None, :] * (2 * K) + offs_k[:, None]
    product = accurate_product(x_ptrs, y_ptrs, K, BLOCK_M, BLOCK_N)
    sq_norm_x, sq_norm_y = tl.load(sq_norm_x_ptr + row), tl.load(sq_norm_y_ptr + column)
    bound_x, bound_y = tl.load(bound_x_ptr + row), tl.load(bound_y_ptr + column)
    scale = tl.load(scale_ptr).to(tl.float64)
    sq_radius = tl.minimum(tl.load(sq_radius_ptr + column) * scale * scale, MASKED_BOUND).to(tl.float32)
    lower_x = own_part(sq_norm_x, bound_x, relative_error) - slack
    lower_y = own_part(sq_norm_y, bound_y, relative_error)
    lower = (lower_x[:, None] - product) + (lower_y[None, :] - product)
    upper_x, upper_y = sq_norm_x * (1 + relative_error) + slack, sq_norm_y * (1 + relative_error)
    upper = (upper_x[:, None] - product) + (upper_y[None, :] - product)
    fits_x, fits_y = sq_norm_x < LONGEST_HALF * LONGEST_HALF, sq_norm_y < LONGEST_HALF * LONGEST_HALF
    admissible_x = (offs_m < M) & (bound_x < MASKED_BOUND * 0.1)
    admissible_y = (offs_n < N) & (bound_y < MASKED_BOUND * 0.1)
    admissible = admissible_x[:, None] & admissible_y[None, :]
    # The margins cover the rounding of the radius to float32.
    inside = admissible & (fits_x[:, None] & fits_y[None, :]) & (upper <= (sq_radius * (1 - 2.0**-20))[None, :])
    inside = inside.to(tl.int32)
    in_doubt = admissible & (inside == 0) & (lower <= (sq_radius * (1 + 2.0**-20))[None, :])
    place = local_m[:, None] * BLOCK_N + local_n[None, :]
    doubt = tl.min(tl.min(tl.where(in_doubt, place, BLOCK_M * BLOCK_N), 1), 0)
    while doubt < BLOCK_M * BLOCK_N:
        i = (pid_m * BLOCK_M + doubt // BLOCK_N).to(tl.int64)
        j = (pid_n * BLOCK_N + doubt % BLOCK_N).to(tl.int64)
        acc = tl.zeros((BLOCK_K,), tl.float64)
        for start_k in range(0, D, BLOCK_K):
            offs_d = start_k + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + i * stride_xm + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + j * stride_yn + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
            difference = (x - y).to(tl.float64)
            acc += difference * difference
        is_inside = tl.sum(acc, 0) <= tl.load(sq_radius_ptr + j)
        inside = tl.where(place == doubt, is_inside.to(tl.int32), inside)
        in_doubt = in_doubt & (place > doubt)
        doubt = tl.min(tl.min(tl.where(in_doubt, place, BLOCK_M * BLOCK_N), 1), 0)
    counts = tl.sum(inside, 1)
    if CODES:
        before = tl.cumsum(counts, 0) - counts
        first = tl.atomic_add(count_ptr, tl.sum(counts, 0).to(tl.int64), sem="relaxed")
        positions = first + (before[:, None] + tl.cumsum(inside, 1) - 1).to(tl.int64)
        codes = row[:, None] * total + (column + offset)[None, :]
        tl.store(code_ptr + positions, codes, mask=(inside > 0) & (positions < room))
    else:
        tl.atomic_add(count_ptr + offs_m, counts.to(tl.int64), mask=(offs_m < M) & (counts > 0), sem="relaxed")


@operator(returns_nothing, "count", "codes")
def add_within(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor, sq_norm_x: Tensor, bound_x: Tensor, sq_norm_y: Tensor,
    bound_y: Tensor, sq_radius: Tensor, count: Tensor, codes: Tensor | None, total: int, offset: int,
) -> None:  # fmt: skip
    """Count or write down the pairs of a row and a column that are within the column's radius of each other.

    Args:
        x: the rows' vectors, [M, D].
        y: the columns' vectors, [N, D].
        centre: float32 [D], as round_vectors got it.
        scale: float32 [], as round_vectors got it.
        sq_norm_x: float32 [M or more], as round_vectors returned it for x.
        bound_x: float32 [M or more], likewise.
        sq_norm_y: float32 [N or more], as round_vectors returned it for y.
        bound_y: float32 [N or more], likewise.
        sq_radius: float64 [N], the squares of the columns' radii.
        count: int64 [M], to which each row's pairs are added; with codes, int64 [], how many there are. Changed.
        codes: int64, which receives row x total + column + offset of each pair, in any order, as far as there is room;
            or None. Changed.
        total: the number of all columns.
        offset: the code of the first row and the first column.
    """
    if len(x) and len(y):
        x, y = (v if v.stride(1) == 1 else v.contiguous() for v in (x, y))
        tile = within_tile(x.device)
        split_x, split_y = split(x, sq_norm_x, y, sq_norm_y, centre, scale, None)
        k = split_x.shape[1] // 2
        with on_device_of(x):
            within_kernel[(triton.cdiv(len(x), tile.block_m) * triton.cdiv(len(y), tile.block_n),)](
                x, x.stride(0), y, y.stride(0), split_x, split_y, sq_norm_x, bound_x, sq_norm_y, bound_y, sq_radius,
                scale, count, codes, len(x), len(y), x.shape[1], k, total, offset, 0 if codes is None else len(codes),
                relative_error(k), k * 2.0**-26,
                BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=BLOCK_K, CODES=codes is not None,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
