"""The networks that metrics see images through, with trained or random weights."""

import os
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from imletriton.distance.weights import fetch_weights
from imletriton.errors import InputError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation that VGG16 was trained with


class Network(nn.Module):
    """Turns images into features, in two halves: `prepare` on the CPU, then a forward pass where the network is."""

    name: str

    def prepare(self, images: Tensor) -> Tensor:
        """Images, uint8 [b, 3, H, W], as the forward pass wants them; may run while another batch is passing."""
        return images


class Inception(Network):
    """2048 features for FID and KID: clean-fid's resizing and its Inception-v3 (Parmar, Zhang, Zhu, CVPR 2022)."""

    name = "inception"

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.resize, self.pretrained = build_resizer("clean"), pretrained
        if pretrained:
            file = fetch_weights("inception")
            try:
                self.network = InceptionV3W(str(file.parent), download=False)
            except RuntimeError as error:
                raise InputError(f"{file} does not hold the inception weights: remove it and try again.") from error
        else:
            self.network = _random(models.inception_v3, init_weights=False, aux_logits=False)
            self.network.fc = nn.Identity()
        self.requires_grad_(False).eval()

    def prepare(self, images: Tensor) -> Tensor:
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            resized = list(workers.map(self.resize, rearrange(images, "b c h w -> b h w c").numpy()))
        return rearrange(torch.from_numpy(np.stack(resized)), "b h w c -> b c h w") if resized else torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x if self.pretrained else (x - 128) / 128)
        return found


class VGG16(Network):
    """4096 features for precision and recall: the second fully connected layer after its ReLU, at 224x224.

    Kynkaanniemi et al. (NeurIPS 2019); resizing and layer as torch-fidelity has them.
    """

    name = "vgg"

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        if pretrained:
            file = fetch_weights("vgg")
            network = models.vgg16(weights=None, init_weights=False)
            try:
                # torchvision publishes pickled files; with weights_only nothing but tensors is read from them.
                network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError) as error:
                raise InputError(f"{file} does not hold the vgg weights: remove it and try again.") from error
        else:
            network = _random(models.vgg16, init_weights=False)
        network.classifier = network.classifier[:5]
        self.network = network
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        x = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(224, 224), align_corners=False)
        found: Tensor = self.network(normalize(x / 255, *IMAGENET))
        return found


def _random(build: object, **arguments: bool) -> nn.Module:
    """The network with random weights, always the same, scaled so that its signals keep their size (He et al. 2015)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = build(weights=None, **arguments)  # type: ignore[operator]
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network
