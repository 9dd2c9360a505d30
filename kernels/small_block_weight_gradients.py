"""The gradients of the small block's weights and biases (small_block.py), in one launch.

With g the gradient of out, d<v> that of v and t a tap, each a sum over all pixels p of all samples:

    dw4 = sum of g[p] a3[p]^T                   db4 = sum of g[p]
    dw3[t] = sum of dh3[p] a2[p + t]^T          db3 = sum of dh3[p]
    dw2[t] = sum of dh2[p] up(a1)[p + t]^T      db2 = sum of dh2[p]
    dw1 = sum of dh1[p] a0[p]^T                 db1 = sum of dh1[p]

A program computes a tile of one of them from all pixels, in a fixed order: results repeat bit by bit.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from imletriton.kernels.launch import generation

NUM_WARPS = 8
NUM_STAGES = {"hopper": 3, "blackwell": 3, "ampere": 2, "small": 2}  # elsewhere a third load in flight spills registers


def weight_block_sizes(middle: int, itemsize: int) -> dict[str, int]:
    """The block sizes of the weights' gradients, for the size of an item of the maps in bytes.

    A program computes BLOCK_O by BLOCK_I entries from BLOCK_ROWS pixels a step, or BLOCK_I of a bias from BLOCK_BIAS. A
    narrow BLOCK_I makes many programs, as few pixels make short ones.
    """
    block_o = min(128, max(16, triton.next_power_of_2(middle)))
    return {"BLOCK_O": block_o, "BLOCK_I": 32, "BLOCK_ROWS": 128 // itemsize, "BLOCK_BIAS": 512 // itemsize}


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


@torch.library.custom_op("imletriton::small_block_weight_gradients", mutates_args=())
def small_block_weight_gradients(
    grad: Tensor, adain: Tensor, hidden: Tensor, grad_hidden: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> list[Tensor]:
    """The gradients of the small block's weights and biases.

    Args:
        grad: the gradient of its result, [b, C, R, R].
        adain, hidden: the maps that small_block_kernel wrote.
        grad_hidden: the gradients that small_block_map_gradients_kernel wrote.
        weights, biases: as given to small_block.

    Returns:
        The gradients of the four weights and the four biases, in their dtypes.
    """
    results: list[Tensor] = weight_gradients_fake(grad, adain, hidden, grad_hidden, weights, biases)
    (b, channels, resolution), (middle, _, kernel) = grad.shape[:3], weights[1].shape[:3]
    sizes = weight_block_sizes(middle, hidden.itemsize)
    num_c, num_m = (triton.cdiv(n, sizes["BLOCK_I"]) for n in (channels, middle))
    programs = 3 * num_c + num_m * (2 * kernel**2 + 3), triton.cdiv(middle, sizes["BLOCK_O"])
    grad = grad.contiguous(memory_format=torch.channels_last)
    pairs = zip(results[:4], results[4:], strict=True)
    with torch.cuda.device_of(grad):
        small_block_weight_gradients_kernel[programs](
            grad, adain, hidden, grad_hidden, *(v for pair in pairs for v in pair), b,
            C=channels, MIDDLE=middle, R=resolution, FACTOR=resolution // math.isqrt(adain.shape[2]), KERNEL=kernel,
            **sizes, num_warps=NUM_WARPS, num_stages=NUM_STAGES[generation(grad.device)],
        )  # fmt: skip
    return results


@small_block_weight_gradients.register_fake
def weight_gradients_fake(
    grad: Tensor, adain: Tensor, hidden: Tensor, grad_hidden: Tensor, weights: list[Tensor], biases: list[Tensor]
) -> list[Tensor]:
    """The results' shapes, dtypes and layouts, with any content."""
    maps = [torch.empty_like(v, memory_format=torch.channels_last) for v in weights]
    return maps + [torch.empty_like(v) for v in biases]
