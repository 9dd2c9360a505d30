"""Adaptive instance norm and GELU of it, forward and backward, each in two passes over a channels_last map.

    unit = (x - mean) rsqrt(var + eps),  y = scale unit + shift,  g = gelu(y) = y P(y)

Mean and biased var are over space, of each sample and channel; P is the normal distribution. With gradients of y and g,

    d = of_y + of_g (P(y) + y P'(y)),  of_x = scale rsqrt(var + eps) (d - mean(d) - unit mean(d unit))
    of_scale = sum(d unit),  of_shift = sum(d)

where unit and y are made again from x. Sums over space are made in parts: a program of the first pass reads a slice of
space for a block of channels; one of the second merges what all slices gave, in a fixed order, and writes its slice.

From every value the sample's first position, its pivot, is subtracted before anything is averaged, so an offset common
to all costs no bits. Variances are made by Welford's update and merged as Chan, Golub and LeVeque do: no difference of
squares, whatever the pivot is.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

POSITIONS, CHANNELS, WARPS = 16, 64, 4  # of a program at once: 8 values a thread
PROGRAMS = 2048  # of a launch, where maps are large enough: a few for each place on the largest GPUs
VARYING = ["positions", "slices", "length"]  # one build for maps of every size


@triton.jit
def place(program, slices, channels, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's sample, slice and channels, and of its tiles: which channels exist, the lanes and the offsets.

    Neighbours in number are neighbours in memory.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    sample = (program // blocks // slices).to(tl.int64)  # offsets are made from it: maps may exceed 2^31 values
    channel = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    lane = tl.arange(0, POSITIONS)[:, None]
    return sample, program // blocks % slices, channel, (channel < channels)[None, :], lane, lane * channels + channel


@triton.jit
def row(values, channel, channels):
    return tl.load(values + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def tile(values, offset, inside):
    return tl.load(values + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def normal(y):
    """P(y), to 3e-7, and P'(y). P by Abramowitz and Stegun, 26.2.17, from P': half the work of erf and exp."""
    density = tl.exp2(y * y * -0.7213475204444817) * 0.3989422804014327
    u = 1.0 + 0.2316419 * tl.abs(y)
    t = tl.rsqrt(u * u)  # 1 / u in two instructions instead of eight
    tail = 0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    tail *= t * density
    return tl.where(y < 0, tail, 1.0 - tail), density


@triton.jit(do_not_specialize=VARYING)
def moments_kernel(
    x, means, squares, positions, channels, slices, length, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Of each slice, the mean, less the pivot, and the sum of squared deviations from it."""
    sample, part, channel, here, lane, offset = place(tl.program_id(0), slices, channels, POSITIONS, CHANNELS)
    pivot = row(x + sample * positions * channels, channel, channels)
    count = tl.minimum(length, positions - part * length)
    at = (sample * positions + part * length) * channels
    mean = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    square = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for start in range(0, count, POSITIONS):
        inside = (start + lane < count) & here
        value = tl.where(inside, tile(x + at, offset, inside) - pivot, mean)
        difference = value - mean
        mean += difference * (1.0 / (start // POSITIONS + 1))
        square += difference * (value - mean)
        at += POSITIONS * channels
    of_lane = ((count - lane + POSITIONS - 1) // POSITIONS).to(tl.float32)
    of_slice = tl.sum(mean * of_lane, 0) / count
    apart = mean - of_slice[None, :]
    to = (sample * slices + part) * channels + channel
    tl.store(means + to, of_slice, mask=channel < channels)
    tl.store(squares + to, tl.sum(square + of_lane * apart * apart, 0), mask=channel < channels)


@triton.jit(do_not_specialize=VARYING)
def normalise_kernel(
    x, scale, shift, means, squares, y, g, mean, inverse, scale_stride, shift_stride, eps,
    positions, channels, slices, length, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y and g, and for the gradients each channel's mean, less the pivot, and inverse deviation."""
    # In the opposite order: what the first pass read last may still be in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, part, channel, here, lane, offset = place(program, slices, channels, POSITIONS, CHANNELS)
    parts = sample * slices * channels
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for first in range(0, slices, POSITIONS):
        inside = (first + lane < slices) & here
        of_slice = tl.minimum(length, positions - (first + lane) * length).to(tl.float32)
        total += of_slice * tile(means + parts + first * channels, offset, inside)
    my_mean = (tl.sum(total, 0) / positions)[None, :]
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for first in range(0, slices, POSITIONS):
        inside = (first + lane < slices) & here
        of_slice = tl.minimum(length, positions - (first + lane) * length).to(tl.float32)
        apart = tile(means + parts + first * channels, offset, inside) - my_mean
        square = tile(squares + parts + first * channels, offset, inside) + of_slice * apart * apart
        total += tl.where(inside, square, 0.0)
    my_inverse = tl.rsqrt(tl.sum(total, 0) / positions + eps)[None, :]
    to = sample * channels + channel[None, :]
    tl.store(mean + to, my_mean, mask=here & (part == 0))
    tl.store(inverse + to, my_inverse, mask=here & (part == 0))
    pivot = row(x + sample * positions * channels, channel, channels)
    factor = row(scale + sample * scale_stride, channel, channels) * my_inverse
    summand = row(shift + sample * shift_stride, channel, channels)
    count = tl.minimum(length, positions - part * length)
    at = (sample * positions + part * length) * channels
    for start in range(0, count, POSITIONS):
        inside = (start + lane < count) & here
        value = (tile(x + at, offset, inside) - pivot - my_mean) * factor + summand
        tl.store(y + at + offset, value, mask=inside)
        tl.store(g + at + offset, value * normal(value)[0], mask=inside)
        at += POSITIONS * channels


@triton.jit
def known(x, mean, inverse, scale, shift, scale_stride, shift_stride, sample, positions, channel, channels):
    """What the backward passes know of their channels: pivot, mean, inverse, scale and shift."""
    return (
        row(x + sample * positions * channels, channel, channels),
        row(mean + sample * channels, channel, channels),
        row(inverse + sample * channels, channel, channels),
        row(scale + sample * scale_stride, channel, channels),
        row(shift + sample * shift_stride, channel, channels),
    )


@triton.jit
def unit_and_d(x, of_y, of_g, offset, inside, pivot, mean, inverse, scale, shift):
    """unit and d; outside, d is 0."""
    unit = (tile(x, offset, inside) - pivot - mean) * inverse
    y = unit * scale + shift
    share, density = normal(y)
    return unit, tile(of_y, offset, inside) + tile(of_g, offset, inside) * (share + y * density)


@triton.jit(do_not_specialize=VARYING)
def sums_kernel(
    x, scale, shift, mean, inverse, of_y, of_g, sums, products, scale_stride, shift_stride,
    positions, channels, slices, length, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of each slice, the sums of d and of d unit."""
    sample, part, channel, here, lane, offset = place(tl.program_id(0), slices, channels, POSITIONS, CHANNELS)
    pivot, my_mean, my_inverse, factor, summand = known(
        x, mean, inverse, scale, shift, scale_stride, shift_stride, sample, positions, channel, channels
    )  # fmt: skip
    count = tl.minimum(length, positions - part * length)
    at = (sample * positions + part * length) * channels
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    product = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for start in range(0, count, POSITIONS):
        inside = (start + lane < count) & here
        unit, d = unit_and_d(
            x + at, of_y + at, of_g + at, offset, inside, pivot, my_mean, my_inverse, factor, summand
        )  # fmt: skip
        total += d
        product += d * unit
        at += POSITIONS * channels
    to = (sample * slices + part) * channels + channel
    tl.store(sums + to, tl.sum(total, 0), mask=channel < channels)
    tl.store(products + to, tl.sum(product, 0), mask=channel < channels)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    x, scale, shift, mean, inverse, of_y, of_g, sums, products, of_x, of_scale, of_shift, scale_stride, shift_stride,
    positions, channels, slices, length, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """of_x, of_scale and of_shift."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, part, channel, here, lane, offset = place(program, slices, channels, POSITIONS, CHANNELS)
    parts = sample * slices * channels
    total = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    product = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for first in range(0, slices, POSITIONS):
        inside = (first + lane < slices) & here
        total += tile(sums + parts + first * channels, offset, inside)
        product += tile(products + parts + first * channels, offset, inside)
    my_sum = tl.sum(total, 0)[None, :]
    my_product = tl.sum(product, 0)[None, :]
    to = sample * channels + channel[None, :]
    tl.store(of_shift + to, my_sum, mask=here & (part == 0))
    tl.store(of_scale + to, my_product, mask=here & (part == 0))
    my_sum /= positions
    my_product /= positions
    pivot, my_mean, my_inverse, factor, summand = known(
        x, mean, inverse, scale, shift, scale_stride, shift_stride, sample, positions, channel, channels
    )  # fmt: skip
    count = tl.minimum(length, positions - part * length)
    at = (sample * positions + part * length) * channels
    for start in range(0, count, POSITIONS):
        inside = (start + lane < count) & here
        unit, d = unit_and_d(
            x + at, of_y + at, of_g + at, offset, inside, pivot, my_mean, my_inverse, factor, summand
        )  # fmt: skip
        tl.store(of_x + at + offset, (d - my_sum - unit * my_product) * (factor * my_inverse), mask=inside)
        at += POSITIONS * channels


def split(samples: int, channels: int, positions: int) -> tuple[int, int]:
    """Into how many slices space is split, and how long they are: by shapes alone, so that every GPU sums alike."""
    wanted = triton.cdiv(PROGRAMS, samples * triton.cdiv(channels, CHANNELS))
    wanted = max(1, min(wanted, math.isqrt(positions) // 2))  # every program merges them all: fewer than it has values
    length = POSITIONS * triton.cdiv(positions, wanted * POSITIONS)
    return triton.cdiv(positions, length), length


def _launch(x: Tensor) -> tuple[tuple[int], tuple[Tensor, Tensor], tuple[int, ...]]:
    """The grid of either pass, memory for what the first hands to the second, and the last arguments of both."""
    b, c, h, w = x.shape
    count, length = split(b, c, h * w)
    parts = x.new_empty((2, b, count, c), dtype=torch.float32)
    grid = (b * count * triton.cdiv(c, CHANNELS),)
    return grid, (parts[0], parts[1]), (h * w, c, count, length, POSITIONS, CHANNELS)


def _by_row(style: Tensor) -> Tensor:
    """Rows may lie at any stride, as those of a chunk do."""
    return style if style.stride(1) == 1 else style.contiguous()


@torch.library.custom_op("imletriton::adain_gelu", mutates_args=())
def normalise(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and g, channels_last; float32 [b, C] twice: means, less the pivots, and inverse deviations."""
    y, g, mean, inverse = normalise_like(x, scale, shift, eps, dtype)
    if x.numel():
        x, scale, shift = x.contiguous(memory_format=torch.channels_last), _by_row(scale), _by_row(shift)
        grid, parts, shape = _launch(x)
        with torch.cuda.device_of(x):
            moments_kernel[grid](x, *parts, *shape, num_warps=WARPS)
            normalise_kernel[grid](
                x, scale, shift, *parts, y, g, mean, inverse, scale.stride(0), shift.stride(0), eps, *shape,
                num_warps=WARPS,
            )  # fmt: skip
    return y, g, mean, inverse


@normalise.register_fake
def normalise_like(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, g = (torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last) for _ in range(2))
    mean, inverse = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return y, g, mean, inverse


@torch.library.custom_op("imletriton::adain_gelu_gradients", mutates_args=())
def gradients(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor, of_y: Tensor, of_g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, channels_last, in its dtype; of scale and shift in float32."""
    of_x, of_scale, of_shift = gradients_like(x, scale, shift, mean, inverse, of_y, of_g)
    if x.numel():
        x, of_y, of_g = (v.contiguous(memory_format=torch.channels_last) for v in (x, of_y, of_g))
        scale, shift = _by_row(scale), _by_row(shift)
        grid, parts, shape = _launch(x)
        inputs = x, scale, shift, mean, inverse, of_y, of_g, *parts
        rest = scale.stride(0), shift.stride(0), *shape
        with torch.cuda.device_of(x):
            sums_kernel[grid](*inputs, *rest, num_warps=WARPS)
            gradient_kernel[grid](*inputs, of_x, of_scale, of_shift, *rest, num_warps=WARPS)
    return of_x, of_scale, of_shift


@gradients.register_fake
def gradients_like(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor, of_y: Tensor, of_g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=torch.channels_last)
    return of_x, torch.empty_like(mean), torch.empty_like(mean)


class _AdaINGELU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        y, g, mean, inverse = normalise(x, scale, shift, eps, dtype)
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        return y, g

    @staticmethod
    def backward(ctx: Any, *of_both: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(*ctx.saved_tensors, *of_both), None, None


def adain_gelu(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y and g in dtype, both channels_last. x [b, C, H, W], float32, bfloat16 or float16; scale, shift float32 [b, C].

    Statistics in float32; g is gelu of y as it was before it was rounded to dtype.
    """
    result: tuple[Tensor, Tensor] = _AdaINGELU.apply(x, scale, shift, eps, dtype)
    return result


def adain_gelu_reference(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch; in float64 if x is."""
    value = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(value, (2, 3), correction=0, keepdim=True)
    y = scale[:, :, None, None] * (value - mean) * torch.rsqrt(var + eps) + shift[:, :, None, None]
    return y.to(dtype), F.gelu(y).to(dtype)
