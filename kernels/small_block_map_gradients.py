"""The gradients of the small block's maps and of its style (small_block.py), in one launch or few.

With g the gradient of out and d<v> that of v, * and its transpose the kxk convolutions, and down the sum over the
repetitions of a pixel, the transpose of up:

    dh3 = gelu'(h3) w4^T g
    dh2 = gelu'(h2) w3^T * dh3
    dh1 = gelu'(h1) down(w2^T * dh2)
    dn = gelu'(normed) w1^T dh1 + down(g)
    dshift = sum over a sample's pixels of dn,     dscale = sum of dn z,     z = (x - mean) / std
    dx = scale / std (dn - mean(dn) - z mean(dn z)),                         std = sqrt(var + 1e-2)

Each of the first three lines is a phase, as in the forward pass, and the others are the last one; where pixels are
repeated, down has a phase before that. All sums have a fixed order: results repeat bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.small_block_tiles import (
    block_sizes,
    gelu_slope,
    launch_phases,
    product_tile,
    standardised,
    tiles_for,
)


@triton.jit
def summed_repeats(
    map_ptr, offs_p, offs_n, N: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sum over the FACTOR FACTOR repetitions of a pixel, of a map with resolution R, float32; 0 beyond the map."""
    LOW: tl.constexpr = R // FACTOR
    mask = (offs_p < LOW * LOW)[:, None] & (offs_n < N)[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for repeat in range(FACTOR * FACTOR):
        row = offs_p // LOW * FACTOR + repeat // FACTOR
        pixel = row * R + offs_p % LOW * FACTOR + repeat % FACTOR
        total += tl.load(map_ptr + pixel[:, None] * N + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def hidden_gradient_phase(
    map_ptr, weight_ptr, h_ptr, grad_ptr,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, KERNEL: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad [R R, N] = gelu'(h) weight^T * map of one sample, this program's tiles; without SLOPE, weight^T * map."""
    NUM_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    for tile in range(tl.program_id(1), tl.cdiv(R * R, BLOCK_M) * NUM_N, tl.num_programs(1)):
        offs_m = tile // NUM_N * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile % NUM_N * BLOCK_N + tl.arange(0, BLOCK_N)
        offs = offs_m[:, None] * N + offs_n[None, :]
        mask = (offs_m < R * R)[:, None] & (offs_n < N)[None, :]
        if SLOPE:  # loaded before the product, which hides the wait
            h = tl.load(h_ptr + offs, mask=mask, other=0.0)
        acc = product_tile(map_ptr, weight_ptr, offs_m, offs_n, K, N, R, 1, KERNEL, True, BLOCK_M, BLOCK_N, BLOCK_K)
        if SLOPE:
            acc *= gelu_slope(h.to(tl.float32))
        tl.store(grad_ptr + offs, acc.to(grad_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first", "last"])
def small_block_map_gradients_kernel(
    grad_ptr, x_ptr, scale_ptr, w1_ptr, w2_ptr, w3_ptr, w4_ptr, adain_ptr, hidden_ptr,
    grad_hidden_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr, stride_scale, first, last,
    C: tl.constexpr, MIDDLE: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The phases first to last - 1 of the maps' gradients, shared out as in small_block_kernel.

    Reads grad [b, R R, C], and what small_block_kernel reads and writes. Writes grad_hidden [b, 4, R R, MIDDLE] (dh1,
    of which the first r r pixels, dh2, dh3, and w2^T * dh2 where pixels are repeated), grad_x in x's dtype and shape,
    grad_scale and grad_shift, float32 [b, C]. BLOCK_P >= r r, with r = R / FACTOR.
    """
    LOW: tl.constexpr = R // FACTOR
    MAP: tl.constexpr = R * R * MIDDLE
    sample = tl.program_id(0).to(tl.int64)
    grad_ptr += sample * (R * R * C)
    h_ptr = hidden_ptr + sample * (6 * MAP)
    grad_h_ptr = grad_hidden_ptr + sample * (4 * MAP)
    grad_a1_ptr = grad_h_ptr + (3 * MAP if FACTOR > 1 else 0)

    if first == 0:
        hidden_gradient_phase(
            grad_ptr, w4_ptr, h_ptr + 2 * MAP, grad_h_ptr + 2 * MAP, C, MIDDLE, R, 1, True, BLOCK_M, BLOCK_N, BLOCK_K
        )
        tl.debug_barrier()
    if (first <= 1) & (last > 1):
        hidden_gradient_phase(
            grad_h_ptr + 2 * MAP, w3_ptr, h_ptr + MAP, grad_h_ptr + MAP, MIDDLE, MIDDLE, R, KERNEL, True,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
    if (first <= 2) & (last > 2):
        hidden_gradient_phase(
            grad_h_ptr + MAP, w2_ptr, h_ptr, grad_a1_ptr, MIDDLE, MIDDLE, R, KERNEL, FACTOR == 1,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
    if (first <= 3) & (last > 3) & (FACTOR > 1):
        NUM_N: tl.constexpr = (MIDDLE + BLOCK_N - 1) // BLOCK_N
        for tile in range(tl.program_id(1), tl.cdiv(LOW * LOW, BLOCK_M) * NUM_N, tl.num_programs(1)):
            offs_m = tile // NUM_N * BLOCK_M + tl.arange(0, BLOCK_M)
            offs_n = tile % NUM_N * BLOCK_N + tl.arange(0, BLOCK_N)
            offs = offs_m[:, None] * MIDDLE + offs_n[None, :]
            mask = (offs_m < LOW * LOW)[:, None] & (offs_n < MIDDLE)[None, :]
            total = summed_repeats(grad_a1_ptr, offs_m, offs_n, MIDDLE, R, FACTOR, BLOCK_M, BLOCK_N)
            total *= gelu_slope(tl.load(h_ptr + offs, mask=mask, other=0.0).to(tl.float32))
            tl.store(grad_h_ptr + offs, total.to(grad_hidden_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()
    if last > 4:
        x_ptr += sample * (LOW * LOW * C)
        grad_x_ptr += sample * (LOW * LOW * C)
        normed_ptr = adain_ptr + sample * (2 * LOW * LOW * C)
        offs_p = tl.arange(0, BLOCK_P)
        for block in range(tl.program_id(1), tl.cdiv(C, BLOCK_C), tl.num_programs(1)):
            offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            offs = offs_p[:, None] * C + offs_c[None, :]
            mask = (offs_p < LOW * LOW)[:, None] & (offs_c < C)[None, :]
            normed = tl.load(normed_ptr + offs, mask=mask, other=0.0)
            scale = tl.load(scale_ptr + sample * stride_scale + offs_c, mask=offs_c < C, other=0.0)
            residual = summed_repeats(grad_ptr, offs_p, offs_c, C, R, FACTOR, BLOCK_P, BLOCK_C)
            value, inverse_std = standardised(x_ptr, offs_p, offs_c, C, LOW * LOW, R > 1, BLOCK_C)
            grad = product_tile(
                grad_h_ptr, w1_ptr, offs_p, offs_c, MIDDLE, C, LOW, 1, 1, True, BLOCK_P, BLOCK_C, BLOCK_K
            )
            grad = grad * gelu_slope(normed.to(tl.float32)) + residual
            grad_scale = tl.sum(grad * value, 0)
            grad_shift = tl.sum(grad, 0)
            tl.store(grad_scale_ptr + sample * C + offs_c, grad_scale, mask=offs_c < C)
            tl.store(grad_shift_ptr + sample * C + offs_c, grad_shift, mask=offs_c < C)
            if R > 1:
                grad -= (grad_shift[None, :] + value * grad_scale[None, :]) / (LOW * LOW)
            grad *= (scale * inverse_std)[None, :]
            tl.store(grad_x_ptr + offs, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("imletriton::small_block_map_gradients", mutates_args=())
def small_block_map_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, weights: list[Tensor], adain: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the small block's maps and style.

    Args:
        grad: the gradient of its result, [b, C, R, R].
        x, scale, weights: as given to small_block.
        adain, hidden: the maps that small_block_kernel wrote.

    Returns:
        The gradients of x (in its dtype), scale and shift (float32 [b, C]), and grad_hidden [b, 4, R R, MIDDLE], as
        small_block_map_gradients_kernel writes it.
    """
    grad_x, grad_scale, grad_shift, grad_hidden = map_gradients_fake(grad, x, scale, weights, adain, hidden)
    (b, channels, resolution), middle = grad.shape[:3], len(weights[0])
    factor = resolution // x.shape[2]
    tiles = tiles_for(x.device, resolution)
    sizes = block_sizes(tiles, channels, middle, resolution, factor, max(hidden.itemsize, weights[0].itemsize))
    x, grad, *weights = (v.contiguous(memory_format=torch.channels_last) for v in (x, grad, *weights))
    scale = scale if scale.stride(1) == 1 else scale.contiguous()

    def launch(first: int, last: int, programs: int) -> None:
        small_block_map_gradients_kernel[(b, programs)](
            grad, x, scale, *weights, adain, hidden, grad_hidden, grad_x, grad_scale, grad_shift, scale.stride(0),
            first, last, C=channels, MIDDLE=middle, R=resolution, FACTOR=factor, KERNEL=weights[1].shape[2], **sizes,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    low, high = (triton.cdiv(side**2, sizes["BLOCK_M"]) for side in (x.shape[2], resolution))
    few = triton.cdiv(middle, sizes["BLOCK_N"])
    if b:
        phases = [high * few] * 3 + [low * few if factor > 1 else 0, triton.cdiv(channels, sizes["BLOCK_C"])]
        with torch.cuda.device_of(x):
            launch_phases(launch, phases)
    return grad_x, grad_scale, grad_shift, grad_hidden


@small_block_map_gradients.register_fake
def map_gradients_fake(
    grad: Tensor, x: Tensor, scale: Tensor, weights: list[Tensor], adain: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results' shapes, dtypes and layouts, with any content."""
    grad_scale, grad_shift = (scale.new_empty(scale.shape) for _ in range(2))
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, grad_scale, grad_shift, hidden.new_empty((hidden.shape[0], 4, *hidden.shape[2:]))
