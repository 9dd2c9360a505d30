"""The start of a search: a centre and a scale for rounding, and the running minimum before any sample.

    c_k = the mean of x_ik over at most MOST_ROWS of the queries, evenly spread
    s = 2^(8 - e), where e is the least exponent with |x_i - c| < 2^e for all queries i

Any centre serves; one amid the queries makes the bounds of rounding.py tight. A single query is its own centre and has
no length, so the centre's length is taken instead. Queries that are not finite are left out, and marked in the running
minimum: their squared distance is NaN, which no sample can lower.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator

MOST_ROWS = 1024
CENTRE_BLOCK_M, CENTRE_BLOCK_K = 64, 32
BLOCK_M, BLOCK_K = 8, 128
NUM_WARPS = 4
NONE = tl.constexpr(-(2**30))  # an exponent that stands for no length at all
LONGEST = tl.constexpr(8)  # the exponent of the longest query, once scaled
LEAST, LARGEST = tl.constexpr(-126), tl.constexpr(100)  # exponents of the scale: it and its inverse are normal numbers


@triton.jit
def exponent_of(sq_length):
    """The least e with sqrt(sq_length) < 2^e, int32; NONE for 0. sq_length is float64."""
    # The margin covers the float32 roundings of what will be scaled.
    bits = (sq_length * (1 + 2e-6)).to(tl.int64, bitcast=True)
    exponent = ((bits >> 52) - 1021).to(tl.int32) >> 1  # half of the exponent of the square, rounded up
    return tl.where(sq_length > 0, exponent, NONE)


@triton.jit(do_not_specialize=["M", "stride_xm", "D", "step"])  # one build serves all counts
def centre_kernel(
    x_ptr, stride_xm, centre_ptr, exponent_ptr, ticket_ptr, accepted_ptr, M, D, step,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """centre_k = the mean of x_ik over every step-th row, for BLOCK_K dimensions; and zero for what is counted later.

    Reads x [M, D]. Writes centre float32 [D], and by its first program exponent int32 [], ticket int32 [] and accepted
    int64 [].
    """
    if tl.program_id(0) == 0:
        tl.store(exponent_ptr, NONE)
        tl.store(ticket_ptr, 0)
        tl.store(accepted_ptr, tl.zeros((), tl.int64))
    offs_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float64)
    for start_m in range(0, M, BLOCK_M * step):
        row = start_m + tl.arange(0, BLOCK_M) * step
        mask = (row < M)[:, None] & (offs_k < D)[None, :]
        x = tl.load(x_ptr + row.to(tl.int64)[:, None] * stride_xm + offs_k[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        acc += tl.where(tl.abs(x) < float("inf"), x, 0.0).to(tl.float64)
    centre = tl.sum(acc, 0) / tl.maximum(tl.cdiv(M, step), 1)
    tl.store(centre_ptr + offs_k, centre.to(tl.float32), mask=offs_k < D)


@triton.jit(do_not_specialize=["M", "stride_xm", "D", "top"])
def scale_kernel(
    x_ptr, stride_xm, centre_ptr, scale_ptr, exponent_ptr, ticket_ptr, best_sq_distance_ptr, best_index_ptr, M, D, top,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """scale = 2^(8 - e) by the program that ends last; and the running minimum of BLOCK_M rows: no sample yet.

    Reads x [M, D] and centre float32 [D]. Changes exponent int32 [], the greatest so far, and ticket int32 [], the
    number of programs that have ended. Writes scale float32 [], best_sq_distance float64 [M, top], which is inf or, for
    rows that are not finite, NaN, and best_index int64 [M, top], which is -1.
    """
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    row = tl.where(mask_m, offs_m, 0).to(tl.int64)
    sq_length = tl.zeros((BLOCK_M,), tl.float64)
    sq_centre = tl.zeros((BLOCK_K,), tl.float64)
    finite = mask_m
    for start_k in range(0, D, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < D
        mask = mask_m[:, None] & mask_k[None, :]
        x = tl.load(x_ptr + row[:, None] * stride_xm + offs_k[None, :], mask=mask, other=0.0).to(tl.float32)
        finite = finite & (tl.max((~(tl.abs(x) < float("inf"))).to(tl.int32), 1) == 0)
        centre = tl.load(centre_ptr + offs_k, mask=mask_k, other=0.0).to(tl.float64)
        sq_centre += centre * centre
        difference = tl.where(mask, x.to(tl.float64) - centre[None, :], 0.0)
        sq_length += tl.sum(difference * difference, 1)
    longest = tl.max(tl.where(finite, exponent_of(sq_length), NONE), 0)
    tl.atomic_max(exponent_ptr, longest)
    for place in range(top):
        offs = offs_m.to(tl.int64) * top + place
        tl.store(best_sq_distance_ptr + offs, tl.where(finite, float("inf"), float("nan")).to(tl.float64), mask=mask_m)
        tl.store(best_index_ptr + offs, tl.full((BLOCK_M,), -1, tl.int64), mask=mask_m)
    if tl.atomic_add(ticket_ptr, 1) == tl.num_programs(0) - 1:
        longest = tl.atomic_max(exponent_ptr, NONE)  # an atomic read
        longest = tl.where(longest > NONE, longest, exponent_of(tl.sum(sq_centre, 0)))
        exponent = tl.where(longest > NONE, LONGEST - longest, 0)
        exponent = tl.minimum(tl.maximum(exponent, LEAST), LARGEST)
        tl.store(scale_ptr, ((exponent + 127) << 23).to(tl.float32, bitcast=True))


def start_fake(queries: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results' shapes and dtypes, with any content."""
    (n, d), new = queries.shape, queries.new_empty
    return (
        new((d,), dtype=torch.float32), new((), dtype=torch.float32),
        new((n, top), dtype=torch.float64), new((n, top), dtype=torch.int64), new((), dtype=torch.int64),
    )  # fmt: skip


@operator(start_fake)
def start(queries: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Start a search for the `top` nearest samples to each query.

    Args:
        queries: float32, float16 or bfloat16 [n, d].
        top: the number of nearest samples that are wanted.

    Returns:
        The centre, float32 [d], and the scale, float32 [], a power of two that brings the longest query to less than
        2^8; the running minimum, float64 [n, top] (inf; NaN for queries that are not finite) and int64 [n, top] (-1);
        and the number of admissible samples so far, int64 [] (0).
    """
    centre, scale, sq_distance, index, accepted = results = start_fake(queries, top)
    n, d = queries.shape
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    exponent, ticket = (queries.new_empty((), dtype=torch.int32) for _ in range(2))
    with on_device_of(queries):
        step = max(1, triton.cdiv(n, MOST_ROWS))
        centre_kernel[(max(1, triton.cdiv(d, CENTRE_BLOCK_K)),)](
            queries, queries.stride(0), centre, exponent, ticket, accepted, n, d, step,
            BLOCK_M=CENTRE_BLOCK_M, BLOCK_K=CENTRE_BLOCK_K, num_warps=NUM_WARPS,
        )  # fmt: skip
        scale_kernel[(max(1, triton.cdiv(n, BLOCK_M)),)](
            queries, queries.stride(0), centre, scale, exponent, ticket, sq_distance, index, n, d, top,
            BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K, num_warps=NUM_WARPS,
        )  # fmt: skip
    return results


def start_reference(queries: Tensor) -> tuple[Tensor, Tensor]:
    """The centre and the scale that `start` computes, in plain PyTorch, for finite queries."""
    rows = queries[:: max(1, -(-len(queries) // MOST_ROWS))].double()
    centre = rows.mean(0).float()
    lengths = torch.linalg.vector_norm(queries.double() - centre, dim=1)
    length = lengths.amax() if lengths.amax() > 0 else torch.linalg.vector_norm(centre.double())
    exponent = LONGEST.value - torch.frexp(length * (1 + 1e-6)).exponent if length > 0 else torch.zeros_like(length)
    one = torch.ones_like(exponent, dtype=torch.float32)
    return centre, torch.ldexp(one, exponent.clamp(LEAST.value, LARGEST.value))
