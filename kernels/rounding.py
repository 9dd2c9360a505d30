"""Rounding: vectors are centred, scaled and rounded to float16 for a fast matmul, each with a bound on the error.

    h = fl16(s (v - c)),  r = s (v - c) - h,  bound = (1 - e) |s (v - c)|^2 - 1.01 |r|^2 / p

The bounds of a row x and a column y, both centred and scaled, and the product of their rounded vectors never exceed
their squared distance:

    bound_x + bound_y - 2 fl(h_x . h_y) <= |x - y|^2

Proof: |x - y|^2 = |x|^2 + |y|^2 - 2 x . y, and x . y - h_x . h_y = r_x . y + h_x . r_y. By Young's inequality, twice
these two terms are at most p |y|^2 + |r_x|^2 / p and p |h_x|^2 + |r_y|^2 / p for any p > 0; here p is 2^-12, what
rounding to 10 bits loses of a vector on average. The relative error e covers p, the d additions in float32, in any
order and rounded or cut off as tensor cores do (2^-23 each), the rounding of the norm, and 2^-13 for the low bits in
which the scan stores a member's index.

s is a power of two that brings the longest query to at most 2^8; start.py guarantees it for lengths up to 2^134, which
float32 reaches only with over 4,096 values at its end. Vectors longer than float16 can hold, 2^15, get h = 0 and
bound = (|v| - 2^8)^2 - 2^16: no squared distance to a query, whose own bound is at most 2^16, can be below the sum of
both. So of the two sides of a search, one has to be those queries; NearestSearch sees to that. Vectors that are not
finite get the bound MASKED.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator

MASKED = 3e38  # the bound of a vector that must never be chosen
MASKED_BOUND = tl.constexpr(MASKED)  # the same, for kernels
LONGEST_HALF = tl.constexpr(2.0**15)
LONGEST_QUERY = tl.constexpr(2.0**8)
YOUNG_P = tl.constexpr(2.0**-12)
BLOCKS_K = 64, 1024  # dimensions at once; the second is taken where K is a multiple of it
BLOCK_M, NUM_WARPS = 4, 4
PADDING = 256  # bounds are padded with MASKED to a multiple of the largest group, so that the scan loads whole groups
MOST_PADDING = tl.constexpr(PADDING)  # the same, for kernels


@triton.jit
def load_centred(vectors_ptr, row, stride, offs_k, mask_m, D, centre_ptr, scale):
    """s (v - c) of the rows in mask_m and whether v is finite, float32 and bool [rows, BLOCK_K]; 0 elsewhere.

    Values are clamped to 1e16, so that their squares can be added; what is not finite becomes 0.
    """
    mask = mask_m[:, None] & (offs_k < D)[None, :]
    value = tl.load(vectors_ptr + row[:, None] * stride + offs_k[None, :], mask=mask, other=0.0).to(tl.float32)
    finite = tl.abs(value) < float("inf")
    value = (value - tl.load(centre_ptr + offs_k, mask=offs_k < D, other=0.0)[None, :]) * scale
    return tl.where(mask & finite, tl.minimum(tl.maximum(value, -1e16), 1e16), 0.0), finite


@triton.jit(do_not_specialize=["M", "D", "padded"])  # one build serves all counts
def rounding_kernel(
    vectors_ptr, stride_vm, centre_ptr, scale_ptr, half_ptr, stride_hm, bound_ptr, sq_norm_ptr, accepted_ptr,
    M, D, padded, relative_error, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Round BLOCK_M vectors: h = fl16(s (v - c)), |s (v - c)|^2 and the bound of the module's docstring.

    Reads vectors [M, D], centre float32 [D] and scale float32 []. Writes half float16 [M, K], whose stride_hm is K, D
    rounded up to a multiple of 64 (zeros from D on), and bound and sq_norm, float32 [padded] (MASKED and 0 from M on).
    Adds the number of finite vectors to accepted, int64 [].
    """
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    row = tl.where(mask_m, offs_m, 0).to(tl.int64)
    scale = tl.load(scale_ptr)
    sq_norm = tl.zeros((BLOCK_M,), tl.float32)
    finite = mask_m
    for start_k in range(0, D, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        value, are_finite = load_centred(vectors_ptr, row, stride_vm, offs_k, mask_m, D, centre_ptr, scale)
        finite = finite & (tl.min(are_finite.to(tl.int32), 1) > 0)
        sq_norm += tl.sum(value * value, 1)
    fits_half = finite & (sq_norm < LONGEST_HALF * LONGEST_HALF)
    sq_remainder = tl.zeros((BLOCK_M,), tl.float32)
    for start_k in range(0, stride_hm, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        value, _ = load_centred(vectors_ptr, row, stride_vm, offs_k, fits_half, D, centre_ptr, scale)
        rounded = value.to(tl.float16)
        remainder = value - rounded.to(tl.float32)
        sq_remainder += tl.sum(remainder * remainder, 1)
        tl.store(half_ptr + row[:, None] * stride_hm + offs_k[None, :], rounded, mask=mask_m[:, None])
    distance = tl.maximum(tl.sqrt(sq_norm) * (1 - 1e-4) - LONGEST_QUERY, 0.0)
    far_bound = tl.maximum(tl.minimum(distance * distance, 1e37) * (1 - 1e-3) - LONGEST_QUERY * LONGEST_QUERY, 0.0)
    half_bound = sq_norm * (1 - relative_error) - sq_remainder * (1.01 / YOUNG_P)
    bound = tl.where(finite, tl.where(fits_half, half_bound, far_bound), MASKED_BOUND)
    tl.store(bound_ptr + offs_m, bound, mask=mask_m)
    tl.store(sq_norm_ptr + offs_m, sq_norm, mask=mask_m)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        offs_pad = M + tl.arange(0, MOST_PADDING)
        tl.store(bound_ptr + offs_pad, tl.full((MOST_PADDING,), MASKED_BOUND, tl.float32), mask=offs_pad < padded)
        tl.store(sq_norm_ptr + offs_pad, tl.zeros((MOST_PADDING,), tl.float32), mask=offs_pad < padded)
    tl.atomic_add(accepted_ptr, tl.sum(finite.to(tl.int64), 0), sem="relaxed")


def relative_error(d: int) -> float:
    """The e of the bound, for vectors of d dimensions."""
    return 2.0**-12 * (1 + 2.0**-5) + 2.0**-13 + (1.6 * d + 32) * 2.0**-23


def rounded_dimension(d: int) -> int:
    """K: d rounded up to a multiple of 64."""
    return -(-d // BLOCKS_K[0]) * BLOCKS_K[0]


def round_vectors_fake(
    vectors: Tensor, centre: Tensor, scale: Tensor, accepted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The results' shapes and dtypes, with any content."""
    (m, d), new = vectors.shape, vectors.new_empty
    padded = (m + PADDING - 1) // PADDING * PADDING
    half = new((m, rounded_dimension(d)), dtype=torch.float16)
    return half, new((padded,), dtype=torch.float32), new((padded,), dtype=torch.float32)


@operator(round_vectors_fake, "accepted")
def round_vectors(
    vectors: Tensor, centre: Tensor, scale: Tensor, accepted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Round vectors to float16, with the bounds of the module's docstring.

    Args:
        vectors: float32, float16 or bfloat16 [M, D], rows at any stride.
        centre: float32 [D], finite: what is subtracted from each vector.
        scale: float32 [], a power of two.
        accepted: int64 [], to which the number of finite vectors is added; or None. Changed.

    Returns:
        The rounded vectors, float16 [M, K], where K is D rounded up to a multiple of 64 and the rest is zero; their
        bounds, float32 [P], where P is M rounded up to a multiple of PADDING, and MASKED from M on; and
        s^2 |v - c|^2, float32 [P], and 0 from M on.
    """
    half, bound, sq_norm = round_vectors_fake(vectors, centre, scale, accepted)
    if len(vectors):
        vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        d, k = vectors.shape[1], half.shape[1]
        if accepted is None:
            accepted = vectors.new_empty((), dtype=torch.int64)
        with on_device_of(vectors):
            rounding_kernel[(triton.cdiv(len(vectors), BLOCK_M),)](
                vectors, vectors.stride(0), centre, scale, half, k, bound, sq_norm, accepted,
                len(vectors), d, len(bound), relative_error(d),
                BLOCK_M=BLOCK_M, BLOCK_K=BLOCKS_K[1] if k % BLOCKS_K[1] == 0 else BLOCKS_K[0], num_warps=NUM_WARPS,
            )  # fmt: skip
    return half, bound, sq_norm


def round_vectors_reference(vectors: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The results of round_vectors in plain PyTorch, without padding."""
    m, d = vectors.shape
    value = ((vectors.float() - centre) * scale).clamp(-1e16, 1e16)
    finite = vectors.isfinite().all(1)
    value = torch.where(finite[:, None], value, 0)
    sq_norm = value.square().sum(1)
    fits_half = finite & (sq_norm < LONGEST_HALF.value**2)
    half = torch.zeros(m, rounded_dimension(d), dtype=torch.float16, device=vectors.device)
    half[:, :d] = torch.where(fits_half[:, None], value, 0).half()
    sq_remainder = (value - half[:, :d].float()).square().sum(1)
    sq_distance = (sq_norm.sqrt() * (1 - 1e-4) - LONGEST_QUERY.value).clamp(min=0).square().clamp(max=1e37)
    far_bound = (sq_distance * (1 - 1e-3) - LONGEST_QUERY.value**2).clamp(min=0)
    half_bound = sq_norm * (1 - relative_error(d)) - sq_remainder * (1.01 / YOUNG_P.value)
    return half, torch.where(finite, torch.where(fits_half, half_bound, far_bound), MASKED), sq_norm
