"""Operations on large feature maps that take few passes over a GPU's memory.

torch.compile fuses the differentiable ones; a Triton kernel does the projection in one pass.
"""

import torch
from einops import rearrange
from torch import Tensor

from imletriton.distance.projection import CountSketch


def unit_features(layer: Tensor, weight: Tensor) -> Tensor:
    """Compute the LPIPS features of a layer: w_c f_pc / |f_p| at each position p and channel c.

    Args:
        layer: The feature map f, [b, C, H, W].
        weight: The weights w of the channels, [C].

    Returns:
        float32 [b, H * W * C], with the channels of each position side by side.
    """
    flat = _by_position(layer).float()
    return rearrange(flat * (_inverse_norm(flat) * weight), "b position c -> b (position c)")


def sketched_features(layer: Tensor, weight: Tensor, sketch: CountSketch) -> Tensor:
    """Project the `unit_features` of a layer, which are not stored on a GPU. There is no gradient.

    Args:
        layer: The feature map, [b, C, H, W].
        weight: The weights of the channels, [C].
        sketch: The projection from H * W * C to k dimensions.

    Returns:
        float32 [b, k].
    """
    if layer.device.type == "cpu":
        signed_weight = rearrange(sketch.sign, "(position c) -> position c", c=len(weight)) * weight
        return torch.cat([_sketched(part.float(), signed_weight, sketch) for part in _by_position(layer).split(1)])
    if sketch.row % layer.shape[1] == 0:
        from imletriton.kernels.unit_sketch import unit_sketch  # here because Triton loads slowly

        sketched: Tensor = unit_sketch(layer, weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim)
        return sketched
    projected: Tensor = sketch(unit_features(layer, weight))
    return projected


def _sketched(flat: Tensor, signed_weight: Tensor, sketch: CountSketch) -> Tensor:
    """Project the unit features of maps [b, HW, C]; signed_weight [HW, C] is the sketch's signs times the weights."""
    units = flat * _inverse_norm(flat)
    return sketch.collect(rearrange(units.mul_(signed_weight), "b position c -> b (position c)"))


def _inverse_norm(flat: Tensor) -> Tensor:
    """Compute 1 / |f_p| of the vector f_p at each position p: [b, HW, C] -> [b, HW, 1]."""
    # The lpips package divides by |f_p| + 1e-10, whose gradient is NaN where f_p is zero.
    return flat.square().sum(2, keepdim=True).clamp_min(1e-20).rsqrt()


def _by_position(x: Tensor) -> Tensor:
    """Rearrange [b, C, H, W] to [b, HW, C]; this is a view where x is channels_last."""
    return rearrange(x, "b c h w -> b (h w) c")
