"""The gradients of the small block (small_block.py): those of its maps in one launch, those of its weights in another.

With g the gradient of out and d<v> that of v, * and its transpose the kxk convolutions, and down the sum over the
repetitions of a pixel, the transpose of up:

    dh3 = gelu'(h3) w4^T g                                    dw4 = sum over pixels p of g[p] a3[p]^T
    dh2 = gelu'(h2) w3^T * dh3                                dw3[t] = sum of dh3[p] a2[p + t]^T, t being a tap
    dh1 = gelu'(h1) down(w2^T * dh2)                          dw2[t] = sum of dh2[p] up(a1)[p + t]^T
    dn = gelu'(normed) w1^T dh1 + down(g)                     dw1 = sum of dh1[p] a0[p]^T
    dshift = sum over a sample's pixels of dn                 db4 = sum of g[p], db3 = sum of dh3[p], ...
    dscale = sum of dn z,     z = (x - mean) / std, with std = sqrt(var + 1e-2)
    dx = scale / std (dn - mean(dn) - z mean(dn z))

On the left, each line is a phase, as in the forward pass. On the right, a program computes a tile of one weight's
gradient from all pixels of all samples. All sums have a fixed order: results repeat bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import generation
from imletriton.kernels.small_block_tiles import (
    block_sizes,
    gelu_slope,
    launch_phases,
    product_tile,
    standardised,
    tiles_for,
)

# Triton's launch options for the weights' gradients.
NUM_WARPS = 8
NUM_STAGES = {"hopper": 3, "ampere": 2, "small": 2}  # elsewhere a third load in flight spills registers


def weight_block_sizes(middle: int, itemsize: int) -> dict[str, int]:
    """The block sizes of the weights' gradients, for the size of an item of the maps in bytes.

    A program computes BLOCK_O by BLOCK_I entries from BLOCK_ROWS pixels a step, or BLOCK_I of a bias from BLOCK_BIAS. A
    narrow BLOCK_I makes many programs, as few pixels make short ones.
    """
    block_o = min(128, max(16, triton.next_power_of_2(middle)))
    return {"BLOCK_O": block_o, "BLOCK_I": 32, "BLOCK_ROWS": 128 // itemsize, "BLOCK_BIAS": 512 // itemsize}


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


@triton.jit
def weight_gradient_tile(
    left_ptr, stride_left, right_ptr, stride_right, result_ptr, stride_o, stride_i, rows, first_o, first_i, down, right,
    N: tl.constexpr, MIDDLE: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """result[o, i] = sum over pixels p of all samples of left[p, o] up(right)[p + (down, right), i], BLOCK_I columns i.

    left is [R R, MIDDLE] a sample and right [R R / FACTOR^2, N], at strides stride_left and stride_right. There are
    rows = b R R pixels.
    """
    LOW: tl.constexpr = R // FACTOR
    offs_o = first_o + tl.arange(0, BLOCK_O)
    offs_i = first_i + tl.arange(0, BLOCK_I)
    acc = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        offs_r = start + tl.arange(0, BLOCK_ROWS)
        sample = (offs_r // (R * R)).to(tl.int64)
        offs_m = offs_r % (R * R)
        row, column = offs_m // R + down, offs_m % R + right
        pixel = row // FACTOR * LOW + column // FACTOR
        inside = (offs_r < rows) & (row >= 0) & (row < R) & (column >= 0) & (column < R)
        left = tl.load(
            left_ptr + (sample * stride_left + offs_m * MIDDLE)[:, None] + offs_o[None, :],
            mask=(offs_r < rows)[:, None] & (offs_o < MIDDLE)[None, :], other=0.0,
        )  # fmt: skip
        other = tl.load(
            right_ptr + (sample * stride_right + pixel * N)[:, None] + offs_i[None, :],
            mask=inside[:, None] & (offs_i < N)[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(tl.trans(left), other, acc)
    offs = offs_o[:, None] * stride_o + offs_i[None, :] * stride_i
    mask = (offs_o < MIDDLE)[:, None] & (offs_i < N)[None, :]
    tl.store(result_ptr + offs, acc.to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_gradient_tile(
    map_ptr, stride, result_ptr, rows, first_n, N: tl.constexpr, PIXELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """result[n] = sum over all rows = b PIXELS pixels of map, [PIXELS, N] a sample; BLOCK_N columns n."""
    offs_n = first_n + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    for start in tl.range(0, rows, BLOCK_ROWS, num_stages=3):
        offs_r = start + tl.arange(0, BLOCK_ROWS)
        offs = (offs_r // PIXELS).to(tl.int64) * stride + offs_r % PIXELS * N
        mask = (offs_r < rows)[:, None] & (offs_n < N)[None, :]
        total += tl.load(map_ptr + offs[:, None] + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(result_ptr + offs_n, tl.sum(total, 0).to(result_ptr.dtype.element_ty), mask=offs_n < N)


@triton.jit(do_not_specialize=["b"])
def small_block_weight_gradients_kernel(
    grad_ptr, adain_ptr, hidden_ptr, grad_hidden_ptr,
    w1_grad_ptr, b1_grad_ptr, w2_grad_ptr, b2_grad_ptr, w3_grad_ptr, b3_grad_ptr, w4_grad_ptr, b4_grad_ptr, b,
    C: tl.constexpr, MIDDLE: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BIAS: tl.constexpr,
):  # fmt: skip
    """BLOCK_O by BLOCK_I entries of a weight's gradient, for one tap, or BLOCK_I entries of a bias's gradient.

    Reads the maps of small_block_kernel and their gradients from small_block_map_gradients_kernel. Writes the gradients
    as the weights and biases lie in memory. Program (i, j) computes block j of MIDDLE channels; i counts 2 NUM_M TAPS
    tiles of w3 and w2, then 2 NUM_C of w4 and w1, then 3 NUM_M + NUM_C of the biases, with NUM_M and NUM_C blocks of
    BLOCK_I among MIDDLE and C channels.
    """
    LOW: tl.constexpr = R // FACTOR
    MAP: tl.constexpr = R * R * MIDDLE
    TAPS: tl.constexpr = KERNEL * KERNEL
    NUM_C: tl.constexpr = (C + BLOCK_I - 1) // BLOCK_I
    NUM_M: tl.constexpr = (MIDDLE + BLOCK_I - 1) // BLOCK_I
    pid = tl.program_id(0)
    first_o = tl.program_id(1) * BLOCK_O
    rows = b * (R * R)
    low_rows = b * (LOW * LOW)
    tap = pid // NUM_M % TAPS
    down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    first_m = pid % NUM_M * BLOCK_I
    if pid < NUM_M * TAPS:  # the longest sums first
        weight_gradient_tile(
            grad_hidden_ptr + 2 * MAP, 4 * MAP, hidden_ptr + 4 * MAP, 6 * MAP, w3_grad_ptr + tap * MIDDLE,
            TAPS * MIDDLE, 1, rows, first_o, first_m, down, right, MIDDLE, MIDDLE, R, 1, BLOCK_O, BLOCK_I, BLOCK_ROWS,
        )  # fmt: skip
    elif pid < 2 * NUM_M * TAPS:
        weight_gradient_tile(
            grad_hidden_ptr + MAP, 4 * MAP, hidden_ptr + 3 * MAP, 6 * MAP, w2_grad_ptr + tap * MIDDLE,
            TAPS * MIDDLE, 1, rows, first_o, first_m, down, right, MIDDLE, MIDDLE, R, FACTOR,
            BLOCK_O, BLOCK_I, BLOCK_ROWS,
        )  # fmt: skip
    elif pid < 2 * NUM_M * TAPS + NUM_C:
        first_c = (pid - 2 * NUM_M * TAPS) * BLOCK_I
        weight_gradient_tile(
            hidden_ptr + 5 * MAP, 6 * MAP, grad_ptr, R * R * C, w4_grad_ptr, 1, MIDDLE, rows, first_o, first_c, 0, 0,
            C, MIDDLE, R, 1, BLOCK_O, BLOCK_I, BLOCK_ROWS,
        )  # fmt: skip
    elif pid < 2 * NUM_M * TAPS + 2 * NUM_C:
        first_c = (pid - 2 * NUM_M * TAPS - NUM_C) * BLOCK_I
        weight_gradient_tile(
            grad_hidden_ptr, 4 * MAP, adain_ptr + LOW * LOW * C, 2 * LOW * LOW * C, w1_grad_ptr, C, 1,
            low_rows, first_o, first_c, 0, 0, C, MIDDLE, LOW, 1, BLOCK_O, BLOCK_I, BLOCK_ROWS,
        )  # fmt: skip
    elif first_o == 0:
        block = pid - 2 * NUM_M * TAPS - 2 * NUM_C
        layer, first_m = block // NUM_M, block % NUM_M * BLOCK_I
        if layer == 0:
            bias_gradient_tile(
                grad_hidden_ptr, 4 * MAP, b1_grad_ptr, low_rows, first_m, MIDDLE, LOW * LOW, BLOCK_BIAS, BLOCK_I
            )
        elif layer < 3:
            result_ptr = b2_grad_ptr if layer == 1 else b3_grad_ptr
            bias_gradient_tile(
                grad_hidden_ptr + layer * MAP, 4 * MAP, result_ptr, rows, first_m, MIDDLE, R * R, BLOCK_BIAS, BLOCK_I
            )
        else:
            first_c = (block - 3 * NUM_M) * BLOCK_I
            bias_gradient_tile(grad_ptr, R * R * C, b4_grad_ptr, rows, first_c, C, R * R, BLOCK_BIAS, BLOCK_I)


@torch.library.custom_op("imletriton::small_block_gradients", mutates_args=())
def small_block_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, weights: list[Tensor], biases: list[Tensor], adain: Tensor, hidden: Tensor
) -> list[Tensor]:
    """The gradients of the small block.

    Args:
        grad: the gradient of its result, [b, C, R, R].
        x, scale, weights, biases: as given to small_block.
        adain, hidden: the maps that small_block_kernel wrote.

    Returns:
        The gradients of x, scale, shift, the four weights and the four biases, in the dtypes of x, float32, the weights
        and the biases.
    """
    b, channels, resolution = grad.shape[:3]
    middle, kernel, factor = len(weights[0]), weights[1].shape[2], resolution // x.shape[2]
    tiles = tiles_for(x.device, resolution)
    sizes = block_sizes(tiles, channels, middle, resolution, factor, max(hidden.itemsize, weights[0].itemsize))
    shape = {"C": channels, "MIDDLE": middle, "R": resolution, "FACTOR": factor, "KERNEL": kernel}
    x, grad, *weights = (v.contiguous(memory_format=torch.channels_last) for v in (x, grad, *weights))
    scale = scale if scale.stride(1) == 1 else scale.contiguous()
    results: list[Tensor] = small_block_gradients_fake(grad, x, scale, weights, biases, adain, hidden)
    grad_x, grad_scale, grad_shift, *rest = results
    grad_hidden = hidden.new_empty((b, 4, resolution**2, middle))

    def launch(first: int, last: int, programs: int) -> None:
        small_block_map_gradients_kernel[(b, programs)](
            grad, x, scale, *weights, adain, hidden, grad_hidden, grad_x, grad_scale, grad_shift, scale.stride(0),
            first, last, **shape, **sizes, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    low, high = (
        triton.cdiv(side**2, sizes["BLOCK_M"]) * triton.cdiv(middle, sizes["BLOCK_N"])
        for side in (x.shape[2], resolution)
    )
    weight_sizes = weight_block_sizes(middle, hidden.itemsize)
    num_c, num_m = (triton.cdiv(n, weight_sizes["BLOCK_I"]) for n in (channels, middle))
    programs = 3 * num_c + num_m * (2 * kernel**2 + 3), triton.cdiv(middle, weight_sizes["BLOCK_O"])
    with torch.cuda.device_of(x):
        if b:
            repeats = low if factor > 1 else 0
            launch_phases(launch, [high, high, high, repeats, triton.cdiv(channels, sizes["BLOCK_C"])])
        small_block_weight_gradients_kernel[programs](
            grad, adain, hidden, grad_hidden, *(v for pair in zip(rest[:4], rest[4:], strict=True) for v in pair), b,
            **shape, **weight_sizes, num_warps=NUM_WARPS, num_stages=NUM_STAGES[generation(x.device)],
        )  # fmt: skip
    return results


@small_block_gradients.register_fake
def small_block_gradients_fake(
    grad: Tensor, x: Tensor, scale: Tensor, weights: list[Tensor], biases: list[Tensor], adain: Tensor, hidden: Tensor
) -> list[Tensor]:
    """The results' shapes, dtypes and layouts, with any content."""
    maps = [torch.empty_like(v, memory_format=torch.channels_last) for v in (x, *weights)]
    styles = [scale.new_empty(scale.shape) for _ in range(2)]
    return [maps[0], *styles, *maps[1:], *(torch.empty_like(v) for v in biases)]
