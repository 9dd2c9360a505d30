"""The networks whose features metrics compare, with pretrained or random weights."""

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

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of VGG16's training images


class Network(nn.Module):
    """A network that computes features of images: `prepare` preprocesses them on the CPU, then `forward` is called."""

    name: str

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images, uint8 [b, 3, H, W] on the CPU, into the input of `forward`, [b, ...]; may run in a thread."""
        return images


class Inception(Network):
    """Inception-v3, whose 2048 features FID and KID compare; resizing and weights as in clean-fid.

    Parmar, Zhang, Zhu (CVPR 2022). Pretrained weights are downloaded on first use; raises InputError if that fails, or
    if their file is damaged.
    """

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
        """Resize images, uint8 [b, 3, H, W], to float32 [b, 3, 299, 299] with values from 0 to 255."""
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            resized = list(workers.map(self.resize, rearrange(images, "b c h w -> b h w c").numpy()))
        return rearrange(torch.from_numpy(np.stack(resized)), "b h w c -> b c h w") if resized else torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features, float32 [b, 2048], of resized images."""
        features: Tensor = self.network(x if self.pretrained else (x - 128) / 128)
        return features


class VGG16(Network):
    """VGG16, whose 4096 features precision and recall compare: those of the second fully connected layer, after ReLU.

    Kynkaanniemi et al. (NeurIPS 2019). Images are resized to 224x224 as in torch-fidelity. Pretrained weights are
    loaded as for `Inception`.
    """

    name = "vgg"

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        if pretrained:
            file = fetch_weights("vgg")
            network = models.vgg16(weights=None, init_weights=False)
            try:
                # torchvision publishes pickled files; weights_only reads nothing but tensors from them.
                network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError) as error:
                raise InputError(f"{file} does not hold the vgg weights: remove it and try again.") from error
        else:
            network = _random(models.vgg16, init_weights=False)
        network.classifier = network.classifier[:5]
        self.network = network
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features, float32 [b, 4096], of images, uint8 [b, 3, H, W]."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        x = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(224, 224), align_corners=False)
        x = normalize(x / 255, *IMAGENET)
        if x.device.type == "cpu":  # 1.4 times as fast as the other layout; the same features up to 2e-6
            x = x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(x)
        return features


def _random(build: object, **arguments: bool) -> nn.Module:
    """Build a network with random weights as in He et al. (2015), always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = build(weights=None, **arguments)  # type: ignore[operator]
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network
