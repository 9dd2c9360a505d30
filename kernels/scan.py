"""The scan: a fast product of rounded vectors tells which column of each group may be nearest to a row, and how near.

    bound(i, j) = bound_i + bound_j - 2 h_i . h_j <= s^2 |x_i - y_j|^2        (proved in rounding.py)
    first[g, i] = the least bound over the columns j of group g, with the index of j in the group in its low 8 bits
    second[g, i] = the least bound over the other columns of group g

One program multiplies one tile, as in any matmul, but writes two numbers a row instead of the tile, so nothing of size
M x N reaches memory. These two numbers are all that decide.py needs to be exact: a group whose second bound is above
the least distance known holds at most one candidate, and first says which column that is.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from imletriton.kernels.launch import scan_tile
from imletriton.kernels.rounding import MASKED, MASKED_BOUND

MEMBER_BITS = 0xFF  # the low bits of first, which hold a column's index in its group
MEMBER_MASK = tl.constexpr(MEMBER_BITS)  # the same, for kernels
BAND_M = tl.constexpr(8)  # tiles of rows that share a sweep over the columns, for the second-level cache


@triton.jit
def swizzled_tile(pid, num_pid_m, num_pid_n):
    """The tile (pid_m, pid_n) of a program, in bands of BAND_M tiles: consecutive programs share operands in the cache.

    band = pid // (BAND_M num_pid_n),  pid_m = BAND_M band + pid % height,  pid_n = (pid % (BAND_M num_pid_n)) // height
    """
    band = pid // (BAND_M * num_pid_n)
    height = tl.minimum(num_pid_m - band * BAND_M, BAND_M)
    pid_in_band = pid % (BAND_M * num_pid_n)
    return band * BAND_M + pid_in_band % height, pid_in_band // height


@triton.jit
def pack_member(value, member):
    """value, float32, with its low 8 bits replaced by member, int32 below 256: still within 2^-15 of the value.

    A single minimum over packed values then finds both the least value and the member that has it.
    """
    return ((value.to(tl.int32, bitcast=True) & ~MEMBER_MASK) | member).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["M", "N"])  # one build serves all counts
def scan_kernel(
    half_x_ptr, half_y_ptr, bound_x_ptr, bound_y_ptr, first_ptr, second_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The two least of bound_i + bound_j - 2 h_i . h_j for BLOCK_M rows i over the BLOCK_N columns j of one group.

    Reads half_x float16 [M, K], half_y float16 [N, K], both contiguous, bound_x float32 [M] and bound_y float32 [N].
    Writes first and second, float32 [groups, M], clamped to 0 and MASKED. A group is BLOCK_N columns.
    """
    pid_m, group = swizzled_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N))
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    member = tl.arange(0, BLOCK_N)
    offs_n = group * BLOCK_N + member
    offs_k = tl.arange(0, BLOCK_K)
    mask_m = offs_m < M
    # Rows and columns beyond the end read the last vector again, which spares the loop a mask; their bounds are masked.
    x_ptrs = half_x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * K + offs_k[None, :]
    y_ptrs = half_y_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[None, :] * K + offs_k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, BLOCK_K):
        acc = tl.dot(tl.load(x_ptrs), tl.load(y_ptrs), acc)
        x_ptrs += BLOCK_K
        y_ptrs += BLOCK_K
    bound_y = tl.load(bound_y_ptr + offs_n, mask=offs_n < N, other=MASKED_BOUND)
    half_bound = pack_member((bound_y * 0.5)[None, :] - acc, member[None, :])
    first = tl.min(half_bound, 1)
    second = tl.min(tl.where(half_bound == first[:, None], MASKED_BOUND * 0.5, half_bound), 1)
    # The row's bound is added last: once a row instead of once a product.
    bound_x = tl.load(bound_x_ptr + offs_m, mask=mask_m, other=0.0)
    first_member = first.to(tl.int32, bitcast=True) & MEMBER_MASK
    first = tl.maximum(tl.minimum(bound_x + first * 2, MASKED_BOUND), 0.0)
    second = tl.maximum(tl.minimum(bound_x + second * 2, MASKED_BOUND), 0.0)
    offs_out = group.to(tl.int64) * M + offs_m
    tl.store(first_ptr + offs_out, pack_member(first, first_member), mask=mask_m)
    tl.store(second_ptr + offs_out, second, mask=mask_m)


@torch.library.custom_op("imletriton::scan", mutates_args=())
def scan(half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The two least bounds of each row in each group of columns.

    Args:
        half_x: the rounded rows, float16 [M, K], as round_vectors returns them.
        bound_x: their bounds, float32 [M].
        half_y: the rounded columns, float16 [N, K].
        bound_y: their bounds, float32 [N].
        group: the number of columns in a group, a power of two from 16 to 256.

    Returns:
        first and second, float32 [groups, M], as the module's docstring defines them. Where a group has no (second)
        column that is not masked, the bound is MASKED or nearly so.
    """
    first, second = scan_fake(half_x, bound_x, half_y, bound_y, group)
    if len(half_x) and len(half_y):
        tile = scan_tile(half_x.device, len(half_x))
        with torch.cuda.device_of(half_x):
            scan_kernel[(triton.cdiv(len(half_x), tile.block_m) * triton.cdiv(len(half_y), group),)](
                half_x, half_y, bound_x, bound_y, first, second, len(half_x), len(half_y), half_x.shape[1],
                BLOCK_M=tile.block_m, BLOCK_N=group, BLOCK_K=tile.block_k,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return first, second


@scan.register_fake
def scan_fake(half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The results' shapes and dtypes, with any content."""
    groups = -(-half_y.shape[0] // group)
    first, second = (half_x.new_empty((groups, half_x.shape[0]), dtype=torch.float32) for _ in range(2))
    return first, second


def scan_reference(
    half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of scan in plain PyTorch: first without the member, second, and the member, int64 [groups, M]."""
    bounds = bound_x[:, None] + bound_y - 2 * half_x.float() @ half_y.float().T
    return two_least(bounds.clamp(0, MASKED), group)


def two_least(bounds: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the second least of bounds [M, N] in each group, and the least one's member, each [groups, M]."""
    bounds = torch.nn.functional.pad(bounds, (0, -bounds.shape[1] % group), value=MASKED)
    grouped = rearrange(bounds, "row (group member) -> group row member", member=group)
    least, member = grouped.topk(2, largest=False)
    return least[..., 0], least[..., 1], member[..., 0]
