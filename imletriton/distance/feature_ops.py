"""Operations on large feature maps: on a GPU, torch.compile makes few passes of them, or a Triton kernel one."""

import torch
from einops import rearrange
from torch import Tensor

from imletriton.distance.projection import CountSketch


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
