"""A block of the decoder on a small map in one launch or few, because launches cost more there than the arithmetic.

    normed = scale (x - mean) / sqrt(var + 1e-2) + shift      mean and var over the pixels of a sample's channel;
    a0 = gelu(normed)                                         at a resolution of 1, scale x + shift
    h1 = w1 a0 + b1,          a1 = gelu(h1)                   1x1, from C channels to MIDDLE
    h2 = w2 * up(a1) + b2,    a2 = gelu(h2)                   kxk; up repeats pixels, so that R / FACTOR becomes R
    h3 = w3 * a2 + b3,        a3 = gelu(h3)                   kxk
    out = up(normed) + w4 a3 + b4                             1x1, from MIDDLE channels to C

Each line or pair is a phase. One program takes a sample through the phases: what one writes, the next reads after a
barrier. Only a phase with many tiles has its own launch, with a program a tile: AdaIN at 8x8, and all phases above. All
maps are kept for the gradients (small_block_map_gradients.py, small_block_weight_gradients.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from imletriton.kernels.launch import generation
from imletriton.kernels.small_block_map_gradients import small_block_map_gradients
from imletriton.kernels.small_block_tiles import (
    EPS,
    block_sizes,
    gelu,
    launch_phases,
    product_tile,
    standardised,
    tiles_for,
)
from imletriton.kernels.small_block_weight_gradients import small_block_weight_gradients

# The largest batch for which the block is faster than what torch.compile makes of its parts, by the device's key in
# launch.py and the resolution of the result, for maps in bfloat16. Empty, which is off, until a measurement on a card
# fills it in: {"hopper": {1: 32, 4: 32}} would turn the block on up to 4x4.
PAYS: dict[str, dict[int, int]] = {}


@torch.compiler.assume_constant_result  # it asks for the device's properties, which cannot be compiled
def largest_batch(device: torch.device, resolution: int) -> int:
    """The largest batch for which `small_block` is known to be faster than its parts; 0 where it never is."""
    return PAYS.get(generation(device), {}).get(resolution, 0) if device.type == "cuda" else 0


def maps_dtype(x: Tensor) -> torch.dtype:
    """The dtype of autocast, or that of x without autocast."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def small_block_pays(x: Tensor, factor: int = 1) -> bool:
    """Whether `small_block` is known to be faster for these maps [b, C, r, r], on their device, than its parts."""
    return maps_dtype(x) == torch.bfloat16 and len(x) <= largest_batch(x.device, x.shape[2] * factor)


@triton.jit
def hidden_phase(
    map_ptr, weight_ptr, bias_ptr, h_ptr, a_ptr,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h [R R, N] = weight * up(map) + bias and a = gelu(h) of one sample, this program's tiles of them."""
    NUM_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    for tile in range(tl.program_id(1), tl.cdiv(R * R, BLOCK_M) * NUM_N, tl.num_programs(1)):
        offs_m = tile // NUM_N * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile % NUM_N * BLOCK_N + tl.arange(0, BLOCK_N)
        bias = tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)
        acc = product_tile(
            map_ptr, weight_ptr, offs_m, offs_n, K, N, R, FACTOR, KERNEL, False, BLOCK_M, BLOCK_N, BLOCK_K
        )
        h = (acc + bias[None, :]).to(h_ptr.dtype.element_ty)
        offs = offs_m[:, None] * N + offs_n[None, :]
        mask = (offs_m < R * R)[:, None] & (offs_n < N)[None, :]
        tl.store(h_ptr + offs, h, mask=mask)
        tl.store(a_ptr + offs, gelu(h.to(tl.float32)).to(h.dtype), mask=mask)


@triton.jit(do_not_specialize=["first", "last"])
def small_block_kernel(
    x_ptr, scale_ptr, shift_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w4_ptr, b4_ptr,
    adain_ptr, hidden_ptr, out_ptr, stride_scale, stride_shift, first, last,
    C: tl.constexpr, MIDDLE: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The phases first to last - 1 of the block: program (i, j) of (b, n) computes tiles j, j + n, ... of sample i.

    Reads x [b, r r, C] with r = R / FACTOR, scale and shift float32 [b, C], weights [out, taps, in] and biases [out].
    Writes adain [b, 2, r r, C] (normed and a0), hidden [b, 6, R R, MIDDLE] (h1, h2, h3, a1, a2, a3; of h1 and a1 the
    first r r pixels) and out [b, R R, C], all in one dtype, in which products are taken. BLOCK_P >= r r.
    """
    LOW: tl.constexpr = R // FACTOR
    MAP: tl.constexpr = R * R * MIDDLE
    sample = tl.program_id(0).to(tl.int64)
    x_ptr += sample * (LOW * LOW * C)
    normed_ptr = adain_ptr + sample * (2 * LOW * LOW * C)
    a0_ptr = normed_ptr + LOW * LOW * C
    h_ptr = hidden_ptr + sample * (6 * MAP)
    a_ptr = h_ptr + 3 * MAP
    out_ptr += sample * (R * R * C)

    if first == 0:
        offs_p = tl.arange(0, BLOCK_P)
        for block in range(tl.program_id(1), tl.cdiv(C, BLOCK_C), tl.num_programs(1)):
            offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            value, _ = standardised(x_ptr, offs_p, offs_c, C, LOW * LOW, R > 1, BLOCK_C)
            scale = tl.load(scale_ptr + sample * stride_scale + offs_c, mask=offs_c < C, other=0.0)
            shift = tl.load(shift_ptr + sample * stride_shift + offs_c, mask=offs_c < C, other=0.0)
            normed = (value * scale[None, :] + shift[None, :]).to(adain_ptr.dtype.element_ty)
            offs = offs_p[:, None] * C + offs_c[None, :]
            mask = (offs_p < LOW * LOW)[:, None] & (offs_c < C)[None, :]
            tl.store(normed_ptr + offs, normed, mask=mask)
            tl.store(a0_ptr + offs, gelu(normed.to(tl.float32)).to(normed.dtype), mask=mask)
        tl.debug_barrier()
    if (first <= 1) & (last > 1):
        hidden_phase(a0_ptr, w1_ptr, b1_ptr, h_ptr, a_ptr, C, MIDDLE, LOW, 1, 1, BLOCK_M, BLOCK_N, BLOCK_K)
        tl.debug_barrier()
    if (first <= 2) & (last > 2):
        hidden_phase(
            a_ptr, w2_ptr, b2_ptr, h_ptr + MAP, a_ptr + MAP, MIDDLE, MIDDLE, R, FACTOR, KERNEL,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
    if (first <= 3) & (last > 3):
        hidden_phase(
            a_ptr + MAP, w3_ptr, b3_ptr, h_ptr + 2 * MAP, a_ptr + 2 * MAP, MIDDLE, MIDDLE, R, 1, KERNEL,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
    if last > 4:
        NUM_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
        for tile in range(tl.program_id(1), tl.cdiv(R * R, BLOCK_M) * NUM_N, tl.num_programs(1)):
            offs_m = tile // NUM_N * BLOCK_M + tl.arange(0, BLOCK_M)
            offs_n = tile % NUM_N * BLOCK_N + tl.arange(0, BLOCK_N)
            mask = (offs_m < R * R)[:, None] & (offs_n < C)[None, :]
            pixel = offs_m // R // FACTOR * LOW + offs_m % R // FACTOR
            # Loaded before the product, which hides the wait.
            normed = tl.load(normed_ptr + pixel[:, None] * C + offs_n[None, :], mask=mask, other=0.0)
            bias = tl.load(b4_ptr + offs_n, mask=offs_n < C, other=0.0)
            out = product_tile(
                a_ptr + 2 * MAP, w4_ptr, offs_m, offs_n, MIDDLE, C, R, 1, 1, False, BLOCK_M, BLOCK_N, BLOCK_K
            )
            out += normed.to(tl.float32) + bias.to(tl.float32)[None, :]
            tl.store(out_ptr + offs_m[:, None] * C + offs_n[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("imletriton::small_block", mutates_args=())
def small_block_maps(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    factor: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's result and the maps on the way to it, all in dtype; the other arguments are those of `small_block`.

    Returns:
        out [b, C, R, R], adain [b, 2, r r, C] and hidden [b, 6, R R, MIDDLE], as small_block_kernel writes them.
    """
    out, adain, hidden = small_block_maps_fake(x, scale, shift, weights, biases, factor, dtype)
    (b, channels, resolution), middle = out.shape[:3], len(weights[0])
    tiles = tiles_for(x.device, resolution)
    sizes = block_sizes(tiles, channels, middle, resolution, factor, max(dtype.itemsize, weights[0].itemsize))
    x, *weights = (v.contiguous(memory_format=torch.channels_last) for v in (x, *weights))
    scale, shift = (v if v.stride(1) == 1 else v.contiguous() for v in (scale, shift))
    parameters = [v for pair in zip(weights, biases, strict=True) for v in pair]

    def launch(first: int, last: int, programs: int) -> None:
        small_block_kernel[(b, programs)](
            x, scale, shift, *parameters, adain, hidden, out, scale.stride(0), shift.stride(0), first, last,
            C=channels, MIDDLE=middle, R=resolution, FACTOR=factor, KERNEL=weights[1].shape[2], **sizes,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    low, high = (triton.cdiv(side**2, sizes["BLOCK_M"]) for side in (x.shape[2], resolution))
    few, many = (triton.cdiv(width, sizes["BLOCK_N"]) for width in (middle, channels))
    if b:
        with torch.cuda.device_of(x):
            launch_phases(
                launch, [triton.cdiv(channels, sizes["BLOCK_C"]), low * few, high * few, high * few, high * many]
            )
    return out, adain, hidden


@small_block_maps.register_fake
def small_block_maps_fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    factor: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results' shapes, dtypes and layouts, with any content."""
    (b, channels, low), side = x.shape[:3], x.shape[2] * factor
    out = x.new_empty((b, side, side, channels), dtype=dtype).permute(0, 3, 1, 2)
    adain = x.new_empty((b, 2, low * low, channels), dtype=dtype)
    return out, adain, x.new_empty((b, 6, side * side, weights[0].shape[0]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, _, weights, biases, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, *weights, *biases, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: object) -> tuple[Any, ...]:
    """The gradients of small_block_maps from that of out; the other two results have none."""
    if grad is None:
        return (None,) * 7
    x, scale, *parameters, adain, hidden = ctx.saved_tensors
    weights, biases = parameters[:4], parameters[4:]
    *grads, grad_hidden = small_block_map_gradients(grad, x, scale, weights, adain, hidden)
    rest = small_block_weight_gradients(grad, adain, hidden, grad_hidden, weights, biases)
    return *grads, rest[:4], rest[4:], None, None


small_block_maps.register_autograd(_backward, setup_context=_setup_context)


def small_block(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], factor: int = 1
) -> Tensor:
    """Compute a block of the decoder, differentiably: the module's docstring defines it.

    Args:
        x: Feature maps [b, C, r, r] in channels_last order (others are copied), bfloat16 or float32.
        scale: AdaIN's scale, float32 [b, C].
        shift: AdaIN's shift, likewise.
        weights: Those of the four convolutions, [MIDDLE, C, 1, 1], twice [MIDDLE, MIDDLE, k, k] with an odd k, and
            [C, MIDDLE, 1, 1], in channels_last order (others are copied), bfloat16 or float32.
        biases: Those of the four convolutions.
        factor: How often each pixel is repeated in each direction: the result has resolution R = r factor.

    Returns:
        The block's result, [b, C, R, R] in the dtype of autocast, or that of x without autocast. Nothing is normalised
        if R is 1.
    """
    out: Tensor = small_block_maps(x, scale, shift, weights, biases, factor, maps_dtype(x))[0]
    return out


def small_block_reference(
    x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], factor: int = 1
) -> Tensor:
    """The result of small_block in plain PyTorch, in the dtype of its arguments, which may be float64."""

    def repeated(v: Tensor) -> Tensor:
        return v.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    value = x
    if x.shape[2] * factor > 1:
        centred = x - x.mean((2, 3), keepdim=True)
        value = centred * torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + EPS.value)
    normed = value * rearrange(scale, "b c -> b c 1 1") + rearrange(shift, "b c -> b c 1 1")
    out = repeated(F.gelu(F.conv2d(F.gelu(normed), weights[0], biases[0])))
    for weight, bias in zip(weights[1:3], biases[1:3], strict=True):
        out = F.gelu(F.conv2d(out, weight, bias, padding=weight.shape[2] // 2))
    return repeated(normed) + F.conv2d(out, weights[3], biases[3])
