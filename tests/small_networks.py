"""Networks that stand for Inception and VGG16: random convolutions, 24 features."""

import torch
from torch import Tensor, nn

from imletriton.metrics.networks import Network


class Small(Network):
    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float() / 255)


class SmallInception(Small):
    name = "inception"


class SmallVGG(Small):
    name = "vgg"
