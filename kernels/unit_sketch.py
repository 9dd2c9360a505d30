"""The count sketch of a layer's unit features (LPIPS), made as the layer is read: the unit features are never stored.

    out_j = sum over rows r of sign_i w_c f_i / |f(p)|,   i = r L + (j - shift_r mod K),   p = i // C,   c = i mod C

f [HW, C] is a sample's feature map as it lies in memory in channels_last format, f(p) the vector of a position. A row
of the sketch (imletriton.distance.projection.CountSketch) is L = P C coordinates, P whole positions, which are shifted
cyclically over the K buckets. A program sums some rows of one sample. It reads each row from memory once, for the
norms: the second, shifted reading finds it in the cache. The programs' sums are added afterwards in a fixed order.
"""

import torch
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor

from imletriton.kernels.launch import on_device_of, operator

BLOCK_R = 64  # rows of the sketch that a program sums
NUM_WARPS = 8


@triton.jit(do_not_specialize=["num_rows", "num_parts"])  # one build serves all counts
def unit_sketch_kernel(
    layer_ptr, weight_ptr, shift_ptr, sign_ptr, partial_ptr, D, K, num_rows, num_parts,
    C: tl.constexpr, L: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial_j = the sum of sign_i w_c f_i / |f(p)| over BLOCK_R rows of the sketch, for one sample and all buckets j.

    Reads layer [b, D] (D = H W C, channels last), weight float32 [C], shift int32 [num_rows] and sign int8 [D]. Writes
    partial float32 [b, num_parts, K]. C and L are constants because the kernel divides by C for every coordinate; each
    layer of a network has a build of its own. BLOCK_K buckets, BLOCK_P positions of a row and BLOCK_C channels are K,
    L / C and C rounded up to powers of two.
    """
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample_ptr = layer_ptr + sample * D
    bucket = tl.arange(0, BLOCK_K)
    position = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_K,), tl.float32)
    for row in range(part * BLOCK_R, tl.minimum(part * BLOCK_R + BLOCK_R, num_rows)):
        start = row * L + position * C
        mask_p = (position * C < L) & (start < D)
        mask = mask_p[:, None] & (channel < C)[None, :]
        vectors = tl.load(sample_ptr + start[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        inverse_norm = 1 / tl.sqrt(tl.maximum(tl.sum(vectors * vectors, 1), 1e-20))
        coordinate = bucket - tl.load(shift_ptr + row)
        coordinate = tl.where(coordinate < 0, coordinate + K, coordinate)
        mask_k = (bucket < K) & (coordinate < L) & (row * L + coordinate < D)
        value = tl.load(sample_ptr + row * L + coordinate, mask=mask_k, other=0.0).to(tl.float32)
        value *= tl.gather(inverse_norm, tl.where(mask_k, coordinate // C, 0), 0)
        value *= tl.load(weight_ptr + coordinate % C, mask=mask_k, other=0.0)
        acc += value * tl.load(sign_ptr + row * L + coordinate, mask=mask_k, other=0).to(tl.float32)
    tl.store(partial_ptr + (sample * num_parts + part) * K + bucket, acc, mask=bucket < K)


def unit_sketch_fake(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    """The result's shape and dtype, with any content."""
    return layer.new_empty((len(layer), k), dtype=torch.float32)


@operator(unit_sketch_fake)
def unit_sketch(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    """The count sketch of a layer's unit features.

    Args:
        layer: a layer's features, [b, C, H, W], float32, float16 or bfloat16.
        weight: the square roots of LPIPS's weights, float32 [C].
        shift: the cyclic shift of each row of the sketch, int32 [rows].
        sign: the sign of each coordinate, int8 [C H W], in channels_last order.
        row: the number of coordinates in a row, a multiple of C and at most k.
        k: the number of buckets.

    Returns:
        The sketch, float32 [b, k].
    """
    b, channels = layer.shape[:2]
    layer = layer.contiguous(memory_format=torch.channels_last)
    parts = triton.cdiv(len(shift), BLOCK_R)
    partial = layer.new_empty((b, parts, k), dtype=torch.float32)
    if b:
        with on_device_of(layer):
            unit_sketch_kernel[(parts, b)](
                layer, weight, shift, sign, partial, layer[0].numel(), k, len(shift), parts,
                C=channels, L=row, BLOCK_R=BLOCK_R, BLOCK_K=triton.next_power_of_2(k),
                BLOCK_P=triton.next_power_of_2(row // channels), BLOCK_C=triton.next_power_of_2(channels),
                num_warps=NUM_WARPS,
            )  # fmt: skip
    return partial.sum(1)


def unit_sketch_reference(layer: Tensor, weight: Tensor, shift: Tensor, sign: Tensor, row: int, k: int) -> Tensor:
    """The result of unit_sketch in plain PyTorch, which adds each coordinate to its bucket."""
    flat = rearrange(layer, "b c h w -> b (h w) c").float()
    inverse_norm = flat.square().sum(2, keepdim=True).clamp_min(1e-20).rsqrt()
    values = rearrange(flat * inverse_norm * weight, "b position c -> b (position c)")
    i = torch.arange(values.shape[1], device=layer.device)
    bucket = (i % row + shift[i // row]) % k
    return values.new_zeros(len(values), k).index_add_(1, bucket, values * sign)
