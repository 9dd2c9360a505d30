"""The generator T: a mapping network and a decoder, joined.

Architecture: Adaptive IMLE (Aghabozorgi, Peng, Li, ICML 2023), section 5, "Training Details": the decoder of
VDVAE (Child, arXiv 2011.10650) under the mapping network of StyleGAN (Karras et al., CVPR 2019).
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imletriton.blocks import Block, parse_blocks
from imletriton.errors import InputError
from imletriton.fused import adain_gelu, in_float32
from imletriton.run import newest_checkpoint

# The papers' 28 blocks for 256x256 images.
PAPER_BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16,32x2,64m32,64x2,128m64,128x2,256m128"

# Samples are always made in whole batches of this many, since a convolution's last bits depend on its batch.
SAMPLE_BATCH = 16
# Latents are drawn in blocks of this many codes: one random stream a code would be slow to seed.
LATENT_BLOCK = 64


def latent_codes(start: int, stop: int, dim: int, *, seed: int, stream: int = 0) -> Tensor:
    """Standard normal latent codes start..stop-1 of a stream: float32 [stop - start, dim], on the CPU.

    Code k depends on (seed, stream, k) alone. Streams of one seed are independent of each other.
    """
    first, last = start // LATENT_BLOCK, -(-stop // LATENT_BLOCK)
    codes = np.empty((max(last - first, 0) * LATENT_BLOCK, dim), dtype=np.float32)
    for block in range(first, last):
        rows = codes[(block - first) * LATENT_BLOCK :][:LATENT_BLOCK]
        np.random.default_rng([seed, stream, block]).standard_normal(out=rows, dtype=np.float32)
    return torch.from_numpy(codes)[start - first * LATENT_BLOCK :][: stop - start]


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2)) over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


class MLPMapping(nn.Sequential):
    """Latent code z [b, latent_dim] -> style w [b, latent_dim]: pixel norm, then linear layers with leaky ReLU."""

    def __init__(self, latent_dim: int, layers: int) -> None:
        super().__init__(PixelNorm())
        for _ in range(layers):
            linear = nn.Linear(latent_dim, latent_dim)
            # PyTorch's default shrinks the signal layer by layer: after eight, every z would map to one w.
            nn.init.kaiming_normal_(linear.weight, a=0.2)
            nn.init.zeros_(linear.bias)
            self.extend([linear, nn.LeakyReLU(0.2)])


class NoMapping(nn.Identity):
    """w = z: for data so small that the decoder alone bends the prior."""


class AdaIN(nn.Module):
    """Adaptive instance norm: normalise each channel over space, then scale and shift it by a linear map of w.

    Huang and Belongie, ICCV 2017, equation 8. Statistics in float32. At 1x1 there is nothing to normalise over.
    """

    def __init__(self, channels: int, style_dim: int, resolution: int) -> None:
        super().__init__()
        self.normalise = resolution > 1
        self.style = nn.Linear(style_dim, 2 * channels)
        with torch.no_grad():
            self.style.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and GELU of it."""
        with in_float32(w):
            scale, shift = rearrange(self.style(w), "b (two c) -> two b c", two=2)
        return adain_gelu(x, scale, shift, self.normalise)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, its bias zero, its weight channels_last as the maps are."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    weight = conv.weight.detach()
    conv.weight = nn.Parameter(torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight))
    return conv


class DecoderBlock(nn.Module):
    """[Upsample,] AdaIN, then a residual bottleneck 1x1 -> kxk -> kxk -> 1x1 with GELU before each.

    Repeating pixels changes no mean or variance and commutes with whatever works pixel by pixel, so a map is upsampled
    only before the first kxk convolution, where it has few channels, and in the sum: the same result for a quarter of
    the work.
    """

    def __init__(self, block: Block, width: int, style_dim: int, middle: int, depth: int) -> None:
        super().__init__()
        self.factor = block.resolution // block.upsample_from if block.upsample_from else 1
        self.adain = AdaIN(width, style_dim, block.resolution)
        kernel = 3 if block.resolution > 2 else 1
        shapes = [(width, middle, 1), (middle, middle, kernel), (middle, middle, kernel), (middle, width, 1)]
        convs = [_conv(i, o, k) for i, o, k in shapes]
        with torch.no_grad():  # the residual branches of all blocks add up to unit variance, as in VDVAE
            convs[-1].weight.mul_(1 / math.sqrt(depth))
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        normed, out = self.branches(x, w)
        result: Tensor = self.upsample(normed) + self.convs[-1](out)
        return result

    def branches(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The two summands before the last steps of each: a map to upsample, and one for the last convolution."""
        normed, activated = self.adain(x, w)
        out = self.upsample(F.gelu(self.convs[0](activated)))
        for conv in self.convs[1:-1]:
            out = F.gelu(conv(out))
        return normed, out

    def upsample(self, x: Tensor) -> Tensor:
        """Each pixel repeated, where the block upsamples."""
        if self.factor == 1:
            return x
        x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        return x.contiguous(memory_format=torch.channels_last)


class VDVAEDecoder(nn.Module):
    """Style w [b, style_dim] -> images in [-1, 1], float32 [b, 3, R, R]: a constant through the blocks, then RGB."""

    def __init__(self, style_dim: int, width: int, blocks: str, bottleneck: float) -> None:
        super().__init__()
        parsed = parse_blocks(blocks)
        start = parsed[0].resolution
        self.constant = nn.Parameter(torch.randn(1, width, start, start))
        middle = max(1, round(width * bottleneck))
        self.blocks = nn.ModuleList(DecoderBlock(b, width, style_dim, middle, len(parsed)) for b in parsed)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.to_rgb = _conv(width, 3, 1)
        self.shape = (3, parsed[-1].resolution, parsed[-1].resolution)

    def forward(self, w: Tensor) -> Tensor:
        x = repeat(self.constant, "1 c h w -> b c h w", b=len(w)).contiguous(memory_format=torch.channels_last)
        *blocks, last = (cast(DecoderBlock, block) for block in self.blocks)
        for block in blocks:
            x = block(x, w)
        return self._colours(last, *last.branches(x, w))

    def _colours(self, last: DecoderBlock, normed: Tensor, out: Tensor) -> Tensor:
        """to_rgb(gain * (upsample(normed) + conv(out)) + bias), where conv is the last block's last convolution.

        All of this is linear at each pixel, so the largest map, [b, width, R, R], need not exist: with
        A = to_rgb.weight diag(gain), the result is upsample(A normed) + (A conv.weight) out + a constant.
        """
        conv, to_rgb = cast(nn.Conv2d, last.convs[-1]), self.to_rgb
        assert conv.bias is not None
        assert to_rgb.bias is not None
        with in_float32(out):
            colours = rearrange(to_rgb.weight, "rgb width 1 1 -> rgb width")
            scaled = colours * rearrange(self.gain, "1 width 1 1 -> width")
            weight = scaled @ rearrange(conv.weight, "width middle 1 1 -> width middle")
            constant = scaled @ conv.bias + colours @ rearrange(self.bias, "1 width 1 1 -> width") + to_rgb.bias
        # As products: the CPU's convolutions are slow where they have three channels.
        coarse, fine = (
            rearrange(F.linear(rearrange(x, "b c h w -> b h w c"), a), "b h w rgb -> b rgb h w")
            for x, a in ((normed, scaled), (out, weight))
        )
        rgb: Tensor = last.upsample(coarse).float() + fine.float() + rearrange(constant, "rgb -> rgb 1 1")
        return rgb

    @staticmethod
    def at_rest(samples: Tensor) -> Tensor:
        """Images in [-1, 1] as uint8."""
        return samples.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)


class MLPDecoder(nn.Sequential):
    """Style w [b, style_dim] -> points in the plane, float32 [b, 2]: three hidden layers of the given width."""

    def __init__(self, style_dim: int, width: int, blocks: str, bottleneck: float) -> None:
        widths = [style_dim, width, width, width]
        layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.GELU())]
        super().__init__(*layers, nn.Linear(width, 2))
        self.shape = (2,)

    def forward(self, w: Tensor) -> Tensor:
        for layer in self:
            w = layer(w)
        return w.float()

    @staticmethod
    def at_rest(samples: Tensor) -> Tensor:
        """Points stay as they are."""
        return samples


MAPPINGS: dict[str, Any] = {"mlp": MLPMapping, "none": lambda latent_dim, layers: NoMapping()}
DECODERS: dict[str, Any] = {"vdvae": VDVAEDecoder, "mlp": MLPDecoder}


MODEL_CARD = """---
{{ card_data }}
---

A few-shot image generator trained by IMLE with imletriton.

```python
from imletriton import Generator

images = Generator.from_pretrained("this folder or its Hub id").sample(64, seed=0)  # uint8 [64, 3, H, W]
```
"""


class Generator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="imletriton",
    pipeline_tag="unconditional-image-generation",
    tags=["imle", "few-shot"],
    model_card_template=MODEL_CARD,
):
    """T(z): latent codes, float32 [b, latent_dim], to data points, float32 [b, ...] (images in [-1, 1]).

    mapping: a name in MAPPINGS; decoder: a name in DECODERS. width: channels at every resolution. blocks: see
    parse_blocks. bottleneck: a block's middle width as a share of width. Follows the Hugging Face Hub convention.
    """

    def __init__(
        self,
        latent_dim: int = 1024,
        mapping: str = "mlp",
        mapping_layers: int = 8,
        decoder: str = "vdvae",
        width: int = 384,
        blocks: str = PAPER_BLOCKS,
        bottleneck: float = 0.25,
    ) -> None:
        super().__init__()
        self.latent_dim, self.width = latent_dim, width
        self.mapping = MAPPINGS[mapping](latent_dim, mapping_layers)
        self.decoder = DECODERS[decoder](latent_dim, width, blocks, bottleneck)

    def forward(self, z: Tensor) -> Tensor:
        with in_float32(z):
            w = self.mapping(z)
        samples: Tensor = self.decoder(w)
        return samples

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, H, W) for images."""
        shape: tuple[int, ...] = self.decoder.shape
        return shape

    @torch.no_grad()
    def sample_batches(self, n: int, seed: int = 0, start: int = 0) -> Iterator[Tensor]:
        """Samples start..start+n-1 of a seed in order, in batches of at most SAMPLE_BATCH, as `sample` gives them."""
        device = next(self.parameters()).device
        for first in range(start - start % SAMPLE_BATCH, start + n, SAMPLE_BATCH):
            z = latent_codes(first, first + SAMPLE_BATCH, self.latent_dim, seed=seed)
            batch = self.decoder.at_rest(self(z.to(device)))
            yield batch[max(start - first, 0) : start + n - first]

    def sample(self, n: int, seed: int = 0, start: int = 0) -> Tensor:
        """Samples start..start+n-1 of a seed: uint8 [n, 3, H, W] on the generator's device (images).

        Sample k depends on (seed, k) alone, to the bit on one device, however many are made at once.
        """
        if n < 1 or not 0 <= seed < 2**32:
            raise ValueError(f"n must be at least 1 and seed from 0 to 2^32 - 1, not {n} and {seed}")
        return torch.cat(list(self.sample_batches(n, seed, start)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The generator of a run (its newest checkpoint), of a checkpoint's folder, or of a Hub id; in eval mode.

        Holds the EMA weights. Raises InputError where a local folder's files are missing, damaged or do not agree.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            return super().from_pretrained(str(pretrained_model_name_or_path), strict=True, **kwargs)
        folder = newest_checkpoint(path) or path
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no {name}: name a run or a checkpoint folder that has one.")
        try:
            return super().from_pretrained(str(folder), **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder / 'config.json'} does not describe a generator: {error}.") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> Self:
        if not Path(model_id).is_dir():
            from_hub: Self = super()._from_pretrained(model_id=model_id, map_location=map_location, **kwargs)
            return from_hub
        for key in ("revision", "cache_dir", "force_download", "local_files_only", "token"):
            kwargs.pop(key, None)  # the Hub's own arguments
        model = cls(**kwargs).to(map_location)
        file = Path(model_id) / "model.safetensors"
        try:
            model.load_state_dict(load_file(file, device=map_location))
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}): use another checkpoint.") from error
        except RuntimeError as error:
            raise InputError(f"{file} belongs to another architecture than the config.json beside it.") from error
        model.eval()
        return model
