"""The scan: a fast product of rounded vectors tells which column of each group may be nearest to a row, and how near.

    bound(i, j) = bound_i + bound_j - 2 h_i . h_j <= s^2 |x_i - y_j|^2        (proved in rounding.py)
    first[g, i] = the least bound over the pairs of columns (2 p, 2 p + 1) of group g, with p in its low bits
    second[g, i] = the least bound over the other pairs of columns of group g

One program multiplies one tile, as in any matmul, but writes two numbers a row instead of the tile, so nothing of size
M x N reaches memory. These two numbers are all that decide.py needs to be exact: a group whose second bound is above
the least distance known holds at most two candidates, and first says which columns these are. Pairs, because the two
columns lie in the same thread: finding the two least takes three operations for each pair instead of each column.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator, scan_tile
from imletriton.kernels.rounding import MASKED, MASKED_BOUND

PAIR = 2  # columns that share a bound
MEMBER_BITS = 0x7F  # the low bits of first, which hold a pair's index in its group
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
def pack_member(value, member, zero):
    """value, float32, with its low 7 bits replaced by member, int32 below 128: still within 2^-16 of the value.

    A single minimum over packed values then finds both the least value and the member that has it. zero is 0. Where the
    compiler does not know that, it keeps the mask in a register, and masks and sets bits in one instruction.
    """
    return ((value.to(tl.int32, bitcast=True) & (~MEMBER_MASK | zero)) | member).to(tl.float32, bitcast=True)


@triton.jit
def add_member(value, member):
    """value, float32, with more of the bits of its member."""
    return (value.to(tl.int32, bitcast=True) | member).to(tl.float32, bitcast=True)


@triton.jit
def merge_two(first, second, other_first, other_second):
    """The two greatest of two values and two others, each first >= second."""
    return tl.maximum(first, other_first), tl.maximum(tl.maximum(second, other_second), tl.minimum(first, other_first))


@triton.jit
def two_greatest_pairs(values, zero, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The two greatest of the pairs of columns of values [BLOCK_M, BLOCK_N], packed with the pairs' members.

    The tensor core's layout spreads a row over four threads: a thread has the columns whose number has its own bits 1
    and 2. So the columns of a pair, which differ in bit 0, lie in one thread. Pairs are sorted two by two, those that
    differ in bit 3, before they are merged, which takes three operations a pair.
    """
    pairs = tl.reshape(tl.max(tl.reshape(values, (BLOCK_M, BLOCK_N // 2, 2)), 2), (BLOCK_M, BLOCK_N // 16, 2, 4))
    one, other = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    member = tl.arange(0, BLOCK_N // 16)[None, :, None] * 8
    one, other = pack_member(one, member, zero), pack_member(other, member + 4, zero)
    first, second = tl.reduce((tl.maximum(one, other), tl.minimum(one, other)), 1, merge_two)
    thread = tl.arange(0, 4)[None, :]
    return tl.reduce((add_member(first, thread), second), 1, merge_two)


@triton.jit(do_not_specialize=["M", "N"])  # one build serves all counts
def scan_kernel(
    half_x_ptr, half_y_ptr, bound_x_ptr, bound_y_ptr, first_ptr, second_ptr, doubts_ptr, crowded_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The two least of bound_i + bound_j - 2 h_i . h_j for BLOCK_M rows i over the pairs of columns j of one group.

    Reads half_x float16 [M, K], half_y float16 [N, K], both contiguous, bound_x float32 [M] and bound_y float32, which
    is padded to whole groups. Writes first and second, float32 [groups, M], clamped to 0 and MASKED. A group is BLOCK_N
    columns. Sets doubts, int32 [groups, tiles of rows], and crowded, int32 [1 + groups x tiles], to 0.
    """
    num_pid_m = tl.cdiv(M, BLOCK_M)
    pid_m, group = swizzled_tile(tl.program_id(0), num_pid_m, tl.cdiv(N, BLOCK_N))
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = group * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the end read the last vector again, which spares the loop a mask; their bounds are masked.
    x_ptrs = half_x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * K + offs_k[None, :]
    y_ptrs = half_y_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[None, :] * K + offs_k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, BLOCK_K):
        acc = tl.dot(tl.load(x_ptrs), tl.load(y_ptrs), acc)
        x_ptrs += BLOCK_K
        y_ptrs += BLOCK_K
    mask_m = offs_m < M
    bound_y = tl.load(bound_y_ptr + offs_n)
    # The greatest of h_i . h_j - bound_j / 2 instead of the least of its negative: a multiply-add, and no negation.
    first, second = two_greatest_pairs(acc - (bound_y * 0.5)[None, :], M >> 31, BLOCK_M, BLOCK_N)
    # The row's bound is added last: once a row instead of once a product.
    bound_x = tl.load(bound_x_ptr + offs_m, mask=mask_m, other=0.0)
    member = first.to(tl.int32, bitcast=True) & MEMBER_MASK
    first = tl.maximum(tl.minimum(bound_x - first * 2, MASKED_BOUND), 0.0)
    second = tl.maximum(tl.minimum(bound_x - second * 2, MASKED_BOUND), 0.0)
    offs_out = group.to(tl.int64) * M + offs_m
    tl.store(first_ptr + offs_out, pack_member(first, member, 0), mask=mask_m)
    tl.store(second_ptr + offs_out, second, mask=mask_m)
    tile = group * num_pid_m + pid_m
    tl.store(doubts_ptr + tile, 0)
    tl.store(crowded_ptr + 1 + tile, 0)
    if tile == 0:
        tl.store(crowded_ptr, 0)


def scan_fake(
    half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, block_m: int, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results' shapes and dtypes, with any content."""
    rows, groups, new = half_x.shape[0], -(-half_y.shape[0] // group), half_x.new_empty
    tiles = groups * -(-rows // block_m)
    first, second = (new((groups, rows), dtype=torch.float32) for _ in range(2))
    return first, second, new((tiles,), dtype=torch.int32), new((1 + tiles,), dtype=torch.int32)


@operator(scan_fake)
def scan(
    half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, block_m: int, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two least bounds of each row in each group of columns.

    Args:
        half_x: the rounded rows, float16 [M, K], as round_vectors returns them.
        bound_x: their bounds, float32 [M or more].
        half_y: the rounded columns, float16 [N, K].
        bound_y: their bounds, float32, padded with MASKED to a whole number of groups at least.
        block_m: the number of rows in a tile, as scan_tile gives it.
        group: the number of columns in a group, the tile's block_n.

    Returns:
        first and second, float32 [groups, M], as the module's docstring defines them; where a group has no (second)
        pair that is not masked, the bound is MASKED or nearly so. And memory for decide: doubts, int32 [groups x tiles
        of rows], and crowded, int32 [1 + groups x tiles of rows], both 0.
    """
    first, second, doubts, crowded = scan_fake(half_x, bound_x, half_y, bound_y, block_m, group)
    if len(bound_y) < len(first) * group:
        raise ValueError(f"the columns' bounds end at {len(bound_y)}, within a group of {group}")
    if len(half_x) and len(half_y):
        tile = scan_tile(half_x.device, len(half_x), half_x.shape[1])
        with on_device_of(half_x):
            scan_kernel[(len(doubts),)](
                half_x, half_y, bound_x, bound_y, first, second, doubts, crowded,
                len(half_x), len(half_y), half_x.shape[1],
                BLOCK_M=block_m, BLOCK_N=group, BLOCK_K=tile.block_k,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return first, second, doubts, crowded


def scan_reference(
    half_x: Tensor, bound_x: Tensor, half_y: Tensor, bound_y: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of scan in plain PyTorch: first without the member, second, and the member, int64 [groups, M].

    The bounds are without padding.
    """
    bounds = bound_x[:, None] + bound_y - 2 * half_x.float() @ half_y.float().T
    return two_least(bounds.clamp(0, MASKED), group)


def two_least(bounds: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The least and second least pair of columns of bounds [M, N] in each group, and the least one's member.

    Each is [groups, M].
    """
    bounds = torch.nn.functional.pad(bounds, (0, -bounds.shape[1] % group), value=MASKED)
    pairs = rearrange(bounds, "row (group member pair) -> group row member pair", member=group // PAIR, pair=PAIR)
    least, member = pairs.amin(3).topk(2, largest=False)
    return least[..., 0], least[..., 1], member[..., 0]
