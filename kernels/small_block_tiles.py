"""What the kernels of the small block share: the product tile, AdaIN's standardised tile, GELU, and how to launch them.

Maps lie in memory in channels_last order, [pixels, channels] a sample, and weights as nn.Conv2d holds them in that
order, [out, tap, in]. A tap is a position of the convolution's window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from imletriton.kernels.launch import generation

EPS = tl.constexpr(1e-2)  # added to the variance, as in the papers


@dataclass(frozen=True)
class Tiles:
    """Upper limits of the tiles: block_m pixels by block_n channels, with block_k channels a step of the product.

    num_warps and num_stages (loads in flight) are Triton's launch options.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# A program that takes a whole sample is bound by the number of steps: wide tiles. One that takes a tile is not.
WHOLE: dict[str, Tiles] = {
    "hopper": Tiles(64, 128, 32, 8, 4),
    "ampere": Tiles(64, 128, 32, 8, 4),
    "small": Tiles(64, 128, 32, 8, 2),
}
SPLIT = Tiles(64, 32, 32, 4, 3)
MOST_WHOLE = 8  # the highest resolution at which one program takes a whole sample, in one launch
ADAIN_TILE = 4096  # elements of a tile of all pixels by some channels, which AdaIN needs


def tiles_for(device: torch.device, resolution: int) -> Tiles:
    """The tiles for a block whose result has this resolution."""
    return WHOLE[generation(device)] if resolution <= MOST_WHOLE else SPLIT


def block_sizes(tiles: Tiles, channels: int, middle: int, resolution: int, factor: int) -> dict[str, int]:
    """The block sizes of the forward and the gradient kernel: the tiles, cut to what the maps need."""
    block_p = max(16, triton.next_power_of_2((resolution // factor) ** 2))
    return {
        "BLOCK_M": min(tiles.block_m, max(16, triton.next_power_of_2(resolution**2))),
        "BLOCK_N": min(tiles.block_n, max(16, triton.next_power_of_2(middle))),
        "BLOCK_K": tiles.block_k,
        "BLOCK_P": block_p,
        "BLOCK_C": max(16, min(ADAIN_TILE // block_p, triton.next_power_of_2(channels))),
    }


def launch_phases(launch: Callable[[int, int, int], object], tiles_of_phase: Sequence[int], whole: bool) -> None:
    """Call launch(first, last, programs) for the phases first to last - 1, with so many programs a sample.

    Args:
        launch: Launches the kernel.
        tiles_of_phase: The number of tiles of a sample in each phase.
        whole: Whether one program takes all tiles of a sample, phase after phase, in one launch. Otherwise each phase is
            a launch of its own, because its programs wait for those of the phase before.
    """
    if whole:
        launch(0, len(tiles_of_phase), 1)
    else:
        for phase, programs in enumerate(tiles_of_phase):
            launch(phase, phase + 1, programs)


@triton.jit
def gelu(x):
    """x Phi(x), Phi being the normal distribution function."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """The derivative of GELU: Phi(x) + x phi(x)."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def standardised(
    x_ptr, offs_p, offs_c, C: tl.constexpr, PIXELS: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(x - mean) / sqrt(var + EPS) of all pixels and some channels, 0 beyond them, and 1 / sqrt(var + EPS) [BLOCK_C].

    Without NORMALISE, x and 1.
    """
    mask = (offs_p < PIXELS)[:, None] & (offs_c < C)[None, :]
    x = tl.load(x_ptr + offs_p[:, None] * C + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse_std = tl.full((BLOCK_C,), 1.0, tl.float32)
    if NORMALISE:
        x = tl.where(
            mask, x - (tl.sum(x, 0) / PIXELS)[None, :], 0.0
        )  # first, so that squares of large means cannot hurt
        inverse_std = 1 / tl.sqrt(tl.sum(x * x, 0) / PIXELS + EPS)
    return x * inverse_std[None, :], inverse_std


@triton.jit
def product_tile(
    map_ptr, weight_ptr, offs_m, offs_n,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels and BLOCK_N channels of a convolution with KERNEL x KERNEL taps that keeps the resolution R, float32.

        result[p, n] = sum over taps t and channels k of map[p + t, k] weight[n, t, k]

    TRANSPOSED computes its gradient instead, the sum of map[p - t, k] weight[k, t, n]. The map has resolution R / FACTOR
    and K channels; its pixels are repeated. Outside of it there are zeros. Weights are rounded to the map's dtype.
    """
    TAPS: tl.constexpr = KERNEL * KERNEL
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    row = offs_m // R
    column = offs_m % R
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(TAPS * STEPS):
        tap = step // STEPS
        offs_k = step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        down = tap // KERNEL - KERNEL // 2
        right = tap % KERNEL - KERNEL // 2
        if TRANSPOSED:
            row_of_map, column_of_map = row - down, column - right
            offs_w = (offs_k[:, None] * TAPS + tap) * N + offs_n[None, :]
        else:
            row_of_map, column_of_map = row + down, column + right
            offs_w = (offs_n[None, :] * TAPS + tap) * K + offs_k[:, None]
        inside = (row_of_map >= 0) & (row_of_map < R) & (column_of_map >= 0) & (column_of_map < R)
        pixel = row_of_map // FACTOR * (R // FACTOR) + column_of_map // FACTOR
        mask_k = offs_k < K
        part = tl.load(
            map_ptr + pixel[:, None] * K + offs_k[None, :], mask=inside[:, None] & mask_k[None, :], other=0.0
        )
        weight = tl.load(weight_ptr + offs_w, mask=mask_k[:, None] & (offs_n < N)[None, :], other=0.0)
        acc = tl.dot(part, weight.to(part.dtype), acc)
    return acc
