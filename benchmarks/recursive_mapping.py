"""A mapping that was tried and is not in the package. Importing this module makes its name known."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from imletriton.generator import Mapping, MappingParameters


class RecursiveSettings(MappingParameters):
    tokens: int = Field(16, ge=1)
    channels: int = Field(32, ge=1)
    outer: int = Field(3, ge=1)
    inner: int = Field(2, ge=1)


class RecursiveMapping(Mapping):
    """z as a grid of tokens that one shared block refines several times (after RTM-IMLE, arXiv 2605.15309).

    The block mixes tokens, then channels, each by SwiGLU after RMSNorm, and sees the first tokens again in each cycle.
    """

    name = "recursive"
    Parameters = RecursiveSettings

    def __init__(self, latent_dim: int, settings: RecursiveSettings) -> None:
        super().__init__(latent_dim, settings)
        tokens, channels = settings.tokens, settings.channels
        self.cycles = settings.outer * settings.inner
        self.start = nn.Linear(latent_dim, tokens * channels)
        self.mix_tokens, self.mix_channels = _SwiGLU(tokens), _SwiGLU(channels)
        self.end = nn.Linear(tokens * channels, latent_dim)
        self.shape = tokens, channels

    def forward(self, z: Tensor) -> Tensor:
        first = self.start(z).view(len(z), *self.shape)
        x = torch.zeros_like(first)
        for _ in range(self.cycles):
            x = x + first
            x = x + self.mix_tokens(F.rms_norm(x, x.shape[-1:]).transpose(1, 2)).transpose(1, 2)
            x = x + self.mix_channels(F.rms_norm(x, x.shape[-1:]))
        result: Tensor = self.end(F.rms_norm(x, x.shape[-1:]).flatten(1))
        return result

    def autocast_layers(self) -> Iterable[nn.Module]:
        return ()


class _SwiGLU(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(size, 4 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.wide(x).chunk(2, -1)
        result: Tensor = self.narrow(F.silu(gate) * value)
        return result
