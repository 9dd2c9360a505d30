"""The built-in points in the plane, like those in the toy experiments of both papers."""

import torch
from torch import Tensor


def toy2d() -> Tensor:
    """Return float32 [12, 2]: eight points on the unit circle, then four on the circle of radius 0.45."""
    angle = torch.arange(8) * (torch.pi / 4)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner_angle = angle[::2] + torch.pi / 8
    inner = 0.45 * torch.stack([inner_angle.cos(), inner_angle.sin()], 1)
    return torch.cat([outer, inner])
