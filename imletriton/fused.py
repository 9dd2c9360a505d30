"""Operations on large feature maps: on a GPU, torch.compile makes few passes of them, or a Triton kernel one."""

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from imletriton.projection import CountSketch

EPS = 1e-2  # of instance norm, as the papers have it


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Leave autocast: for products so small that casting their weights costs more than it saves."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def adain_gelu(x: Tensor, scale: Tensor, shift: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """y = scale * (x - mean) / sqrt(var + 1e-2) + shift, statistics over space; and gelu(y).

    Huang and Belongie, ICCV 2017, equation 8. x [b, C, H, W], float32 or bfloat16; scale, shift float32 [b, C].
    Statistics in float32, results in autocast's dtype. normalise: False leaves out mean and variance, for maps of 1x1.
    """
    dtype = x.dtype
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    # Over [b, HW, C], as channels_last lies in memory: the CPU reduces that several times faster.
    flat = _by_position(x).float()
    factor, shift = (rearrange(v, "b c -> b 1 c") for v in (scale, shift))
    if normalise:
        flat = flat - flat.mean(1, keepdim=True)
        factor = factor * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPS)
    y = torch.addcmul(shift, flat, factor).to(dtype)
    y = rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])  # a view, channels_last
    return y, F.gelu(y)


def unit_features(layer: Tensor, weight: Tensor) -> Tensor:
    """LPIPS's features of a layer [b, C, H, W], each position's of length 1, times weight [C]: float32 [b, HW * C]."""
    flat = _by_position(layer).float()
    return rearrange(flat * (_inverse_norm(flat) * weight), "b position c -> b (position c)")


def sketched_features(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
    """unit_features, projected: float32 [b, k]. Without a gradient."""
    if layer.device.type == "cpu":
        signed_weight = rearrange(sketch.sign, "(position c) -> position c", c=len(weight)) * weight
        return torch.cat([_sketched(part.float(), signed_weight, sketch) for part in _by_position(layer).split(1)])
    if sketch.row % layer.shape[1] == 0:
        from imletriton.kernels.unit_sketch import unit_sketch  # here, as Triton takes a second to load

        sketched: Tensor = unit_sketch(layer, weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim)
        return sketched
    projected: Tensor = sketch(unit_features(layer, weight))
    return projected


def _sketched(flat: Tensor, signed_weight: Tensor, sketch: CountSketch) -> Tensor:
    """The sketch of the unit features of maps [b, HW, C], from their signs times their weights [HW, C]."""
    units = flat * _inverse_norm(flat)
    return sketch.collect(rearrange(units.mul_(signed_weight), "b position c -> b (position c)"))


def _inverse_norm(flat: Tensor) -> Tensor:
    """1 / |f(p)| of the vector at each position: [b, HW, C] -> [b, HW, 1]."""
    # lpips divides by the norm plus 1e-10, whose gradient is NaN where a position is all zero.
    return flat.square().sum(2, keepdim=True).clamp_min(1e-20).rsqrt()


def _by_position(x: Tensor) -> Tensor:
    """[b, C, H, W] as [b, HW, C]: a view where x is channels_last."""
    return rearrange(x, "b c h w -> b (h w) c")
