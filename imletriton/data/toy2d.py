"""The built-in plane: points as in the toy figures of both papers, to see a strategy at work."""

import torch
from torch import Tensor


def toy2d() -> Tensor:
    """Twelve points, always the same: an outer ring of eight and an inner one of four; float32 [12, 2]."""
    angle = torch.arange(8) * (torch.pi / 4)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = 0.45 * torch.stack([(angle[::2] + torch.pi / 8).cos(), (angle[::2] + torch.pi / 8).sin()], 1)
    return torch.cat([outer, inner])
