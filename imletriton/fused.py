"""Operations on large feature maps that would take many passes over memory one by one: made in few.

On the CPU, a map is worked on sample by sample, so that what is between two passes stays in the cache, and gradients
are written out by hand. On a GPU the same formulas are left to torch.compile, or to Triton kernels where those do more.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.projection import CountSketch

LARGE = 2**17  # values of a sample's map from which the CPU's cache matters
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
    if normalise and x.device.type == "cpu" and x[0].numel() >= LARGE:
        y: Tensor = _LargeAdaIN.apply(x.to(dtype), scale, shift)  # type: ignore[no-untyped-call]
        return y, F.gelu(y)
    # Over [b, HW, C], as channels_last lies in memory: the CPU reduces that several times faster.
    flat, factor = _by_position(x).float(), scale[:, None]
    if normalise:
        flat = flat - flat.mean(1, keepdim=True)
        factor = factor * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPS)
    y = _by_channel(torch.addcmul(shift[:, None], flat, factor).to(dtype), x)
    return y, F.gelu(y)


class _LargeAdaIN(torch.autograd.Function):
    """AdaIN on the CPU, a sample at a time: batch norm of a single sample is instance norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = torch.empty_like(x)
        mean, inverse = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
        for i, (a, b) in enumerate(zip(scale, shift, strict=True)):
            y[i], mean[i], inverse[i] = torch.native_batch_norm(x[i : i + 1], a, b, None, None, True, 0.0, EPS)
        ctx.save_for_backward(x, scale, mean, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, mean, inverse = ctx.saved_tensors
        of_x, of_scale, of_shift = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        for i, gradient in enumerate(_by_position(gradients[0])):
            g = gradient.float()
            unit = (_by_position(x[i : i + 1])[0] - mean[i]).mul_(inverse[i])
            of_shift[i] = g.sum(0)
            of_scale[i] = (g * unit).sum(0)
            g = (g - of_shift[i] / len(g)).addcmul_(unit, of_scale[i] / -len(g)).mul_(scale[i] * inverse[i])
            _by_position(of_x)[i] = g
        return of_x, of_scale, of_shift


def unit_features(layer: Tensor, weight: Tensor) -> Tensor:
    """LPIPS's features of a layer [b, C, H, W], each position's of length 1, times weight [C]: float32 [b, HW * C]."""
    flat = _by_position(layer)
    return (flat * _inverse_norm(flat) * weight).flatten(1)


def _inverse_norm(flat: Tensor) -> Tensor:
    """1 / |v| over the last dimension, kept, in float32; of a vector that is all zero, 10^10.

    lpips divides by the norm plus 1e-10, whose gradient is NaN where a position is all zero.
    """
    inverse: Tensor = flat.float().square().sum(-1, keepdim=True).clamp_min(1e-20).rsqrt()
    return inverse


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


def feature_distance(layer: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """|unit_features(layer) - target|^2 of each sample, float32 [b]; target float32 [b, HW * C]."""
    if layer.device.type == "cpu":
        distance: Tensor = _FeatureDistance.apply(layer, weight, target)  # type: ignore[no-untyped-call]
        return distance
    return (unit_features(layer, weight) - target).square().sum(1)


class _FeatureDistance(torch.autograd.Function):
    """feature_distance on the CPU, a sample at a time; the gradient is made on the way, while all is at hand."""

    @staticmethod
    def forward(ctx: Any, layer: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        distance = layer.new_empty(len(layer), dtype=torch.float32)
        gradient = torch.empty_like(layer)
        for i, flat in enumerate(_by_position(layer)):
            inverse = _inverse_norm(flat)
            unit = flat * inverse
            difference = (unit * weight).sub_(target[i].view_as(unit))
            distance[i] = difference.flatten().dot(difference.flatten())
            if ctx.needs_input_grad[0]:
                g = difference.mul_(2 * weight)
                along = (g * unit).sum(1, keepdim=True).mul_(inverse < 1e10)
                _by_position(gradient)[i] = g.addcmul_(unit, along, value=-1).mul_(inverse)
        ctx.save_for_backward(gradient)
        return distance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None, None, None].to(gradient.dtype), None, None


def _by_position(x: Tensor) -> Tensor:
    """[b, C, H, W] as [b, HW, C]: a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _by_channel(flat: Tensor, like: Tensor) -> Tensor:
    """[b, HW, C] as [b, C, H, W], the shape of `like`: a view, channels_last."""
    x: Tensor = flat.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return x
