"""Operations on large feature maps: on a GPU, torch.compile makes few passes of them, or a Triton kernel one."""

import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
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
    flat, factor = _by_position(x).float(), scale[:, None]
    if normalise:
        flat = flat - flat.mean(1, keepdim=True)
        factor = factor * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPS)
    y = _by_channel(torch.addcmul(shift[:, None], flat, factor).to(dtype), x)
    return y, F.gelu(y)


def unit_features(layer: Tensor, weight: Tensor) -> Tensor:
    """LPIPS's features of a layer [b, C, H, W], each position's of length 1, times weight [C]: float32 [b, HW * C]."""
    flat = _by_position(layer).float()
    # lpips divides by the norm plus 1e-10, whose gradient is NaN where a position is all zero.
    inverse = flat.square().sum(2, keepdim=True).clamp_min(1e-20).rsqrt()
    return (flat * (inverse * weight)).flatten(1)


def sketched_features(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
    """unit_features, projected: float32 [b, k]. Without a gradient."""
    if layer.device.type == "cpu":
        return torch.cat([sketch(unit_features(part, weight)) for part in layer.split(1)])
    if sketch.row % layer.shape[1] == 0:
        from imletriton.kernels.unit_sketch import unit_sketch  # here, as Triton takes a second to load

        sketched: Tensor = unit_sketch(layer, weight, sketch.shift, sketch.sign, sketch.row)
        return sketched
    projected: Tensor = sketch(unit_features(layer, weight))
    return projected


def _by_position(x: Tensor) -> Tensor:
    """[b, C, H, W] as [b, HW, C]: a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _by_channel(flat: Tensor, like: Tensor) -> Tensor:
    """[b, HW, C] as [b, C, H, W], the shape of `like`: a view, channels_last."""
    x: Tensor = flat.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return x
