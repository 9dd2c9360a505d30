"""LPIPS's features of a layer, projected as they are made: neither the unit vectors nor the products are ever stored.

    out_j = sum over rows r of sign_i w_c f_i / |f(p)|,   i = r L + (j - shift_r mod k),   p = i // C,   c = i mod C

f [HW, C] is a sample's feature map as channels_last lies in memory, f(p) the vector of a position; a row of the
sketch (imletriton.distance.projection.CountSketch) is L = R C coordinates, R whole positions, shifted round the k
buckets. A program sums some rows of a sample: it reads each from memory once, as the second reading, shifted, finds it
in the cache. The programs' sums are added afterwards in a fixed order.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

ROWS = 64  # of the sketch that a program sums
WARPS = 8


@triton.jit
def unit_sketch_kernel(
    layer, weight, row_shift, sign, partial, dim, channels, k, row, rows, parts,
    ROWS: tl.constexpr, K: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    features = layer + sample * dim
    bucket = tl.arange(0, K)
    position = tl.arange(0, POSITIONS)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((K,), tl.float32)
    for r in range(part * ROWS, tl.minimum(part * ROWS + ROWS, rows)):
        at = r * row + position * channels
        inside = (position * channels < row) & (at < dim)
        here = inside[:, None] & (channel < channels)[None, :]
        vectors = tl.load(features + at[:, None] + channel[None, :], mask=here, other=0.0).to(tl.float32)
        inverse = 1 / tl.sqrt(tl.maximum(tl.sum(vectors * vectors, 1), 1e-20))
        place = bucket - tl.load(row_shift + r)
        place = tl.where(place < 0, place + k, place)
        mine = (bucket < k) & (place < row) & (r * row + place < dim)
        value = tl.load(features + r * row + place, mask=mine, other=0.0).to(tl.float32)
        value *= tl.gather(inverse, tl.where(mine, place // channels, 0), 0)
        value *= tl.load(weight + place % channels, mask=mine, other=0.0)
        total += value * tl.load(sign + r * row + place, mask=mine, other=0).to(tl.float32)
    tl.store(partial + (sample * parts + part) * k + bucket, total, mask=bucket < k)


@torch.library.custom_op("imletriton::unit_sketch", mutates_args=())
def unit_sketch(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    """layer [b, C, H, W], float32, float16 or bfloat16; weight float32 [C]; shift int32 [rows]; sign int8 [C H W].

    row: coordinates a row, a multiple of C, k at most. Returns float32 [b, k].
    """
    b, channels = layer.shape[:2]
    rows = len(shift)
    layer = layer.contiguous(memory_format=torch.channels_last)
    parts = triton.cdiv(rows, ROWS)
    partial = layer.new_empty((b, parts, k), dtype=torch.float32)
    if b:
        with torch.cuda.device_of(layer):
            unit_sketch_kernel[(parts, b)](
                layer, weight, shift, sign, partial, layer[0].numel(), channels, k, row, rows, parts,
                ROWS=ROWS, K=triton.next_power_of_2(k), POSITIONS=triton.next_power_of_2(row // channels),
                CHANNELS=triton.next_power_of_2(channels), num_warps=WARPS,
            )  # fmt: skip
    return partial.sum(1)


@unit_sketch.register_fake
def unit_sketch_like(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    return layer.new_empty((len(layer), k), dtype=torch.float32)


def unit_sketch_reference(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    """The same in plain PyTorch, scattering coordinates into buckets."""
    flat = rearrange(layer, "b c h w -> b (h w) c").float()
    inverse = flat.square().sum(2, keepdim=True).clamp_min(1e-20).rsqrt()
    values = rearrange(flat * inverse * weight, "b position c -> b (position c)")
    i = torch.arange(values.shape[1], device=layer.device)
    bucket = (i % row + shift[i // row]) % k
    return values.new_zeros(len(values), k).index_add_(1, bucket, values * sign)
