"""The papers' decoder: that of VDVAE (Child, arXiv 2011.10650)."""

import itertools
import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from imletriton.generator.blocks import Block, parse_blocks
from imletriton.generator.decoders.base import Decoder
from imletriton.generator.parameters import VDVAEDecoderParameters
from imletriton.system.device import in_float32
from imletriton.system.resampling import enlarge

EPS = 1e-2  # added to the variance by instance norm, as in the papers


def adain_gelu(x: Tensor, scale: Tensor, shift: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Adaptive instance norm (Huang and Belongie, ICCV 2017, equation 8), and GELU of its result.

    y = scale * (x - mean) / sqrt(var + 1e-2) + shift, with mean and variance over the pixels of each channel, in
    float32.

    Args:
        x: Feature maps, float32 or bfloat16 [b, C, H, W].
        scale: float32 [b, C].
        shift: float32 [b, C].
        normalise: False leaves out mean and variance, for feature maps of 1x1.

    Returns:
        y and gelu(y), [b, C, H, W] in the dtype of autocast, or that of x without autocast.
    """
    dtype = x.dtype
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    # Memory holds channels_last maps in the order [b, HW, C]; in that shape, the CPU reduces them several times faster.
    flat = rearrange(x, "b c h w -> b (h w) c").float()
    factor, shift = (rearrange(v, "b c -> b 1 c") for v in (scale, shift))
    if normalise:
        flat = flat - flat.mean(1, keepdim=True)
        factor = factor * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPS)
    y = torch.addcmul(shift, flat, factor).to(dtype)
    y = rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])  # a view, channels_last
    return y, F.gelu(y)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the resolution; its bias starts at zero, its weight is channels_last as the maps are."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    weight = conv.weight.detach()
    conv.weight = nn.Parameter(torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight))
    return conv


class DecoderBlock(nn.Module):
    """Upsampling where the block has it, AdaIN, then a residual bottleneck 1x1 -> kxk -> kxk -> 1x1, GELU before each.

    Repeating pixels changes no mean or variance, and commutes with everything that works pixel by pixel. So maps are
    upsampled only before the first kxk convolution, where they have few channels, and in the skip connection: the same
    result for a quarter of the work. The skip connection can also be upsampled bilinearly.

    Args:
        block: The resolutions of the block.
        width: Channels outside the bottleneck.
        middle: Channels inside the bottleneck.
        depth: The number of blocks of the decoder.
        bilinear: Whether the skip connection is upsampled bilinearly.
    """

    def __init__(self, block: Block, width: int, middle: int, depth: int, bilinear: bool = False) -> None:
        super().__init__()
        self.bilinear = bilinear
        self.factor = block.resolution // block.upsample_from if block.upsample_from else 1
        self.normalise = block.resolution > 1  # at 1x1 there is nothing to normalise over
        kernel = 3 if block.resolution > 2 else 1
        shapes = [(width, middle, 1), (middle, middle, kernel), (middle, middle, kernel), (middle, width, 1)]
        convs = [_conv(i, o, k) for i, o, k in shapes]
        with torch.no_grad():  # the residual branches of all blocks add up to unit variance, as in VDVAE
            convs[-1].weight.mul_(1 / math.sqrt(depth))
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normed, out = self.branches(x, scale, shift)
        result: Tensor = self.upsample(normed) + self.convs[-1](out)
        return result

    def branches(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map that the skip connection upsamples, and the input of the last convolution."""
        normed, activated = adain_gelu(x, scale, shift, self.normalise)
        out = self.repeat(F.gelu(self.convs[0](activated)))
        for conv in self.convs[1:-1]:
            out = F.gelu(conv(out))
        return normed, out

    def repeat(self, x: Tensor) -> Tensor:
        """Repeat each pixel if the block upsamples."""
        if self.factor == 1:
            return x
        x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        return x.contiguous(memory_format=torch.channels_last)

    def upsample(self, x: Tensor) -> Tensor:
        """Upsample in the skip connection: its map, or the colours computed from it."""
        if self.factor == 1 or not self.bilinear:
            return self.repeat(x)
        return enlarge(x, (x.shape[2] * self.factor, x.shape[3] * self.factor))


class VDVAEDecoder(Decoder):
    """Images in [-1, 1], float32 [b, 3, R, R]: learned feature maps go through the blocks, then to RGB.

    The first feature maps are a constant, to which `start = "style"` adds a linear function of w, as in DCGAN (Radford
    et al., ICLR 2016): AdaIN gives every pixel the same scale and shift, so that from a constant alone it takes several
    blocks to change the layout.

    Each position of the last feature maps gives the colours of one pixel, or of a square of patch x patch pixels
    (sub-pixel convolution: Shi et al., CVPR 2016).

    One matmul of w computes the scales and shifts of all blocks: a matmul for each would be too small for a GPU.
    """

    name = "vdvae"
    Parameters = VDVAEDecoderParameters

    def __init__(self, style_dim: int, settings: VDVAEDecoderParameters) -> None:
        super().__init__(style_dim, settings)
        self.width = width = settings.width
        parsed = parse_blocks(settings.blocks)
        side = parsed[0].resolution
        self.constant = nn.Parameter(torch.randn(1, width, side, side))
        middle = max(1, round(width * settings.bottleneck))
        bilinear = settings.upsampling == "bilinear"
        self.blocks = nn.ModuleList(DecoderBlock(b, width, middle, len(parsed), bilinear) for b in parsed)
        self.start = nn.Linear(style_dim, width * side * side) if settings.start == "style" else None
        self.styles = nn.Linear(style_dim, len(parsed) * 2 * width)
        scale, shift = rearrange(self.styles.bias.detach(), "(block two c) -> two block c", two=2, c=width)
        scale.fill_(1)  # training starts at a scale of about 1 and a shift of about 0
        shift.fill_(0)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.patch, self.bilinear = settings.patch, bilinear
        self.to_rgb = _conv(width, 3 * self.patch**2, 1)

    def forward(self, w: Tensor) -> Tensor:
        return self._decode(self._first(w), self.styles(w).to(w.dtype))

    def mix(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Give each of the three styles a third of the blocks."""
        ends = [round(len(self.blocks) * third / 3) * 2 * self.width for third in range(4)]
        styles = [
            self.styles(w).to(w.dtype)[:, start:end]
            for w, (start, end) in zip((coarse, middle, fine), itertools.pairwise(ends), strict=True)
        ]
        return self._decode(self._first(coarse), torch.cat(styles, 1))

    def _first(self, w: Tensor) -> Tensor:
        """The first feature maps, [b, width, r, r]."""
        size = w.shape[0]  # not len(), which would be a constant in an exported graph
        x = repeat(self.constant, "1 c h w -> b c h w", b=size)
        if self.start is not None:
            x = x + self.start(w).to(w.dtype).view(x.shape)
        return x.contiguous(memory_format=torch.channels_last)

    def _decode(self, x: Tensor, scales_and_shifts: Tensor) -> Tensor:
        """Send x through the blocks, with their scales and shifts, [b, blocks * 2 * width]."""
        *blocks, last = (cast(DecoderBlock, block) for block in self.blocks)
        styles = rearrange(scales_and_shifts, "b (block two c) -> (block two) b c", two=2, c=self.width).unbind()
        for block, scale, shift in zip(blocks, styles[:-2:2], styles[1:-2:2], strict=True):
            x = block(x, scale, shift)
        return self._colours(last, *last.branches(x, *styles[-2:]))

    def autocast_layers(self) -> Iterable[nn.Module]:
        """Return the linear layers and the blocks' convolutions, without the last one, which `_colours` uses itself."""
        first = [] if self.start is None else [self.start]
        return [*first, self.styles, *[conv for block in self.blocks for conv in cast(DecoderBlock, block).convs][:-1]]

    def _colours(self, last: DecoderBlock, normed: Tensor, out: Tensor) -> Tensor:
        """Compute pixels(to_rgb(gain * (upsample(normed) + conv(out)) + bias)); conv is `last`'s last convolution.

        This is linear at each pixel, so the largest map, [b, width, R, R], need not be computed: with
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
        # Matmuls, because the CPU's convolutions are slow with so few channels.
        coarse, fine = (
            rearrange(F.linear(rearrange(x, "b c h w -> b h w c"), a), "b h w rgb -> b rgb h w")
            for x, a in ((normed, scaled), (out, weight))
        )
        rgb: Tensor = last.upsample(coarse).float() + fine.float() + rearrange(constant, "rgb -> rgb 1 1")
        return rgb if self.patch == 1 else self._pixels(rgb)

    def _pixels(self, squares: Tensor) -> Tensor:
        """Lay out the colours of squares of pixels, [b, 3 * patch^2, r, r], as images, [b, 3, R, R].

        With bilinear upsampling, so are the means of the squares, so that squares do not show as steps.
        """
        if not self.bilinear:
            return F.pixel_shuffle(squares, self.patch)
        grouped = rearrange(squares, "b (rgb square) h w -> b rgb square h w", rgb=3)
        mean = grouped.mean(2)
        details = F.pixel_shuffle((grouped - mean.unsqueeze(2)).flatten(1, 2), self.patch)
        return details + enlarge(mean, (details.shape[2], details.shape[3]))
