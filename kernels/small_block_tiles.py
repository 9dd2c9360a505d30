"""What the small block's kernels share: the product tile, AdaIN's standardised tile, GELU, and how they are launched.

Maps lie in memory in channels_last order, [pixels, channels] a sample, and weights as nn.Conv2d holds them in that
order, [out, tap, in]. A tap is a position of the convolution's window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import triton
import triton.language as tl

from imletriton.kernels.launch import generation

EPS = tl.constexpr(1e-2)  # added to the variance, as in the papers


@dataclass(frozen=True)
class Tiles:
    """Upper limits of the tiles: block_m pixels by block_n channels, and block_k channels a step of the product.

    block_k is for items of 2 bytes; of 4 bytes there are half as many. num_warps and num_stages (loads in flight) are
    Triton's launch options.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# Where one program takes a whole sample, its tiles are as large as the maps, because each step costs two barriers.
WHOLE: dict[str, Tiles] = {
    "hopper": Tiles(64, 128, 128, 8, 3),
    "blackwell": Tiles(64, 128, 128, 8, 3),
    "ampere": Tiles(64, 128, 64, 8, 3),
    "small": Tiles(64, 128, 32, 8, 3),
}
SPLIT: dict[str, Tiles] = {
    "hopper": Tiles(64, 32, 64, 8, 3),
    "blackwell": Tiles(64, 32, 64, 8, 3),
    "ampere": Tiles(64, 32, 64, 8, 3),
    "small": Tiles(64, 32, 32, 8, 2),
}
MOST_WHOLE = 8  # the highest resolution for WHOLE
MOST_TILES = 4  # of a phase that one program takes; the instructions of more would take longer than a launch
ADAIN_TILE = 4096  # elements of a tile of all pixels by some channels, which AdaIN needs
MOST_ADAIN_CHANNELS = 128


def tiles_for(device: torch.device, resolution: int) -> Tiles:
    """The tiles for a block whose result has this resolution."""
    return (WHOLE if resolution <= MOST_WHOLE else SPLIT)[generation(device)]


def block_sizes(
    tiles: Tiles, channels: int, middle: int, resolution: int, factor: int, itemsize: int
) -> dict[str, int]:
    """The block sizes for the maps' sizes and the widest item in bytes, of the forward and the gradient kernel."""
    block_p = max(16, triton.next_power_of_2((resolution // factor) ** 2))
    return {
        "BLOCK_M": min(tiles.block_m, max(16, triton.next_power_of_2(resolution**2))),
        "BLOCK_N": min(tiles.block_n, max(16, triton.next_power_of_2(middle))),
        "BLOCK_K": tiles.block_k * 2 // itemsize,
        "BLOCK_P": block_p,
        "BLOCK_C": max(16, min(ADAIN_TILE // block_p, MOST_ADAIN_CHANNELS, triton.next_power_of_2(channels))),
    }


def launch_phases(launch: Callable[[int, int, int], object], tiles_of_phase: Sequence[int]) -> None:
    """Launch phases that depend on one another, as few launches as pay.

    Neighbouring phases of up to MOST_TILES tiles a sample share a launch, in which one program takes a sample, phase by
    phase. A phase with more tiles, or without such a neighbour, has its own launch, in which a program takes a tile.

    Args:
        launch: launch(first, last, n) launches the kernel for the phases first to last - 1, with n programs a sample.
        tiles_of_phase: The number of tiles of a sample in each phase; a phase without tiles is left out.
    """
    for _, group in groupby(enumerate(tiles_of_phase), lambda item: item[0] if item[1] > MOST_TILES else None):
        phases = list(group)
        (first, tiles), (last, _) = phases[0], phases[-1]
        if programs := tiles if first == last else 1:
            launch(first, last + 1, programs)


@triton.jit
def normal(x):
    """Phi(x) and phi(x), the normal distribution function and its density, of float32 x, by one exponential.

    For x > 0, 1 - Phi(x) is phi(x) times a polynomial in 1 / (1 + 0.2316419 x), to within 7.5e-8 (Abramowitz and
    Stegun, 26.2.17): as near as float32 comes to 1, with fewer instructions than erf.
    """
    t = 1 / (1 + 0.2316419 * tl.abs(x))
    density = tl.exp(-0.5 * x * x) * 0.3989422804
    tail = ((((1.330274429 * t - 1.821255978) * t + 1.781477937) * t - 0.356563782) * t + 0.319381530) * t * density
    return tl.where(x < 0, tail, 1 - tail), density


@triton.jit
def gelu(x):
    """x Phi(x)."""
    return x * normal(x)[0]


@triton.jit
def gelu_slope(x):
    """The derivative of GELU: Phi(x) + x phi(x)."""
    distribution, density = normal(x)
    return distribution + x * density


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
        # The mean goes first, so that the square of a large one cannot swallow the variance.
        x = tl.where(mask, x - (tl.sum(x, 0) / PIXELS)[None, :], 0.0)
        inverse_std = 1 / tl.sqrt(tl.sum(x * x, 0) / PIXELS + EPS)
    return x * inverse_std[None, :], inverse_std


@triton.jit
def product_tile(
    map_ptr, weight_ptr, offs_m, offs_n,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr, KERNEL: tl.constexpr,
    TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels and BLOCK_N channels of a convolution with KERNEL x KERNEL taps at resolution R, float32.

        result[p, n] = sum over taps t and channels k of map[p + t, k] weight[n, t, k]

    TRANSPOSED computes its gradient instead, the sum of map[p - t, k] weight[k, t, n]. The map has K channels and
    resolution R / FACTOR: its pixels are repeated. Outside of it are zeros. Weights are rounded to the map's dtype.
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
