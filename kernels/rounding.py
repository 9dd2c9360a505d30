"""Vectors made ready for a fast product: centred, scaled, rounded to float16, each with a bound on what that lost.

    h = fl16(s (v - c)),  r = s (v - c) - h,  bound = (1 - k) |s (v - c)|^2 - 1.01 |r|^2 / p

For rows x and columns y, bound_x + bound_y - 2 fl(h_x . h_y) <= s^2 |x - y|^2. Proof: x . y - h_x . h_y = r_x . y +
h_x . r_y; twice each term is at most p |y|^2 + |r_x|^2 / p and p |h_x|^2 + |r_y|^2 / p, for any p > 0 (here 2^-12, what
rounding to 10 bits loses of a vector on average). k covers p, the d additions in float32, in any order and rounded or
cut off as tensor cores do (2^-23 each), the norm's own, and 2^-13 for the bits that the scan gives to an index.

s is a power of two that brings the longest query to at most 2^8. Vectors longer than float16 holds, 2^15, get h = 0 and
bound = (|v| - 2^8)^2 - 2^16: no query of theirs can be nearer. Vectors that are not finite get MASKED.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MASKED = 3e38  # the bound of what must never be chosen
FAR = tl.constexpr(2.0**15)
REACH = tl.constexpr(2.0**8)
SHARE = tl.constexpr(2.0**-12)
NONE = tl.constexpr(MASKED)  # the same, for kernels
DEPTHS = 64, 1024  # values of a vector at once: the second where the vectors, padded to the first, are long enough
ROWS, WARPS = 4, 4


@triton.jit
def rounding_kernel(
    vectors, row_stride, centre, scale, half, half_stride, bound, sq_norm, k, d, loss,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < k
    row = tl.where(here, rows, 0).to(tl.int64)
    s = tl.load(scale)
    total = tl.zeros((ROWS,), tl.float32)
    finite = here
    for start in range(0, d, DEPTH):
        at = start + tl.arange(0, DEPTH)
        inside = here[:, None] & (at < d)[None, :]
        value = tl.load(vectors + row[:, None] * row_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
        finite = finite & (tl.max((~(tl.abs(value) < float("inf"))).to(tl.int32), 1) == 0)
        value = (value - tl.load(centre + at, mask=at < d, other=0.0)[None, :]) * s
        value = tl.where(inside, tl.minimum(tl.maximum(value, -1e16), 1e16), 0.0)
        total += tl.sum(value * value, 1)
    near = finite & (total < FAR * FAR)
    lost = tl.zeros((ROWS,), tl.float32)
    for start in range(0, half_stride, DEPTH):
        at = start + tl.arange(0, DEPTH)
        inside = near[:, None] & (at < d)[None, :]
        value = tl.load(vectors + row[:, None] * row_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
        value = (value - tl.load(centre + at, mask=at < d, other=0.0)[None, :]) * s
        value = tl.where(inside, value, 0.0)
        rounded = value.to(tl.float16)
        rest = value - rounded.to(tl.float32)
        lost += tl.sum(rest * rest, 1)
        tl.store(half + row[:, None] * half_stride + at[None, :], rounded, mask=here[:, None])
    beyond = tl.maximum(tl.sqrt(total) * (1 - 1e-4) - REACH, 0.0)
    far_bound = tl.maximum(tl.minimum(beyond * beyond, 1e37) * (1 - 1e-3) - REACH * REACH, 0.0)
    near_bound = total * (1 - loss) - lost * (1.01 / SHARE)
    tl.store(bound + rows, tl.where(finite, tl.where(near, near_bound, far_bound), NONE), mask=here)
    tl.store(sq_norm + rows, total, mask=here)


def loss(d: int) -> float:
    """k of the bound, for vectors of d dimensions."""
    return 2.0**-12 * (1 + 2.0**-5) + 2.0**-13 + (1.6 * d + 32) * 2.0**-23


@torch.library.custom_op("imletriton::round_vectors", mutates_args=())
def round_vectors(vectors: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [k, d] in float32, float16 or bfloat16, rows at any stride; centre float32 [d]; scale float32 [].

    Returns float16 [k, d rounded up to 64], zeros after d, and float32 [k] twice: the bounds and s^2 |v - c|^2.
    """
    k, d = vectors.shape
    half, bound, sq_norm = round_vectors_like(vectors, centre, scale)
    if k:
        vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        depth = DEPTHS[1] if half.shape[1] % DEPTHS[1] == 0 else DEPTHS[0]
        with torch.cuda.device_of(vectors):
            rounding_kernel[(triton.cdiv(k, ROWS),)](
                vectors, vectors.stride(0), centre, scale, half, half.shape[1], bound, sq_norm, k, d, loss(d),
                ROWS=ROWS, DEPTH=depth, num_warps=WARPS,
            )  # fmt: skip
    return half, bound, sq_norm


@round_vectors.register_fake
def round_vectors_like(vectors: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    k, d = vectors.shape
    half = vectors.new_empty((k, -(-d // DEPTHS[0]) * DEPTHS[0]), dtype=torch.float16)
    return half, vectors.new_empty((k,), dtype=torch.float32), vectors.new_empty((k,), dtype=torch.float32)


def round_vectors_reference(vectors: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain PyTorch."""
    k, d = vectors.shape
    value = ((vectors.float() - centre) * scale).clamp(-1e16, 1e16)
    finite = vectors.isfinite().all(1)
    value = torch.where(finite[:, None], value, 0)
    sq_norm = value.square().sum(1)
    near = finite & (sq_norm < FAR.value**2)
    half = torch.zeros(k, -(-d // DEPTHS[0]) * DEPTHS[0], dtype=torch.float16, device=vectors.device)
    half[:, :d] = torch.where(near[:, None], value, 0).half()
    lost = (value - half[:, :d].float()).square().sum(1)
    beyond = (sq_norm.sqrt() * (1 - 1e-4) - REACH.value).clamp(min=0).square().clamp(max=1e37)
    far_bound = (beyond * (1 - 1e-3) - REACH.value**2).clamp(min=0)
    near_bound = sq_norm * (1 - loss(d)) - lost * (1.01 / SHARE.value)
    return half, torch.where(finite, torch.where(near, near_bound, far_bound), MASKED), sq_norm
