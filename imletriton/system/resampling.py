"""Bilinear upsampling with reproducible gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.system.device import in_float32


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps, float [b, c, h, w], bilinearly to [b, c, *size], with x's dtype and memory format.

    As `torch.nn.functional.interpolate` without aligned corners. Its backward pass on CUDA adds up gradients in an
    order that differs from run to run, so two small matmuls replace it there.
    """
    if not _needs_matmuls(x):
        return F.interpolate(x, size, mode="bilinear")
    rows, columns = (_weights(x.shape[2 + k], size[k], x.device) for k in (0, 1))
    with in_float32(x):
        enlarged = rows @ x.float() @ columns.T
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return enlarged.to(x.dtype).contiguous(memory_format=layout)


def _needs_matmuls(x: Tensor) -> bool:
    return x.is_cuda


def _weights(old: int, new: int, device: torch.device) -> Tensor:
    """The weight of each of `old` pixels in each of `new`, float32 [new, old]."""
    return F.interpolate(torch.eye(old, device=device)[None], new, mode="linear")[0].T
