"""The interface of decoders."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imletriton.errors import InputError
from imletriton.generator.parameters import DECODERS, DecoderParameters


class Decoder(nn.Module, ABC):
    """Turns the style w that a mapping computes into a sample: an image, or a point in the plane.

    A subclass defines:

    - `name`;
    - `Parameters`, a subclass of `DecoderParameters` with a method `shape()`, the shape of a sample;
    - `width`, the channels of its largest feature maps, or the units of a layer. The pool estimates from it how many
      samples fit into memory at once: about `4 * width` floating-point numbers for each pixel of a sample;
    - `forward`;
    - optionally `mix`, if it has blocks that can get different styles;
    - optionally `autocast_layers`, which saves converting weights in every call.

    Defining a subclass registers its name. docs/extending.md has an example of a mapping, which works the same way.

    Args:
        style_dim: The dimension of w.
        settings: An instance of the class's `Parameters`.
    """

    name: ClassVar[str]
    Parameters: ClassVar[type[DecoderParameters]]
    width: int

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if getattr(getattr(cls, "Parameters", None), "shape", DecoderParameters.shape) is DecoderParameters.shape:
            raise TypeError(f"{cls.__name__}.Parameters must be a subclass of DecoderParameters that defines shape()")
        DECODERS.register(cls)

    def __init__(self, style_dim: int, settings: DecoderParameters) -> None:
        super().__init__()
        self.settings, self.shape = settings, settings.shape()

    @abstractmethod
    def forward(self, w: Tensor) -> Tensor:
        """Turn styles w, float32 [b, style_dim], into samples, float32 [b, *shape]; images are in [-1, 1]."""

    def mix(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Turn three styles, each float32 [b, style_dim], into samples, float32 [b, *shape]; see `Generator.mix`."""
        raise InputError(
            f"generator.decoder {self.name!r} has no blocks whose styles can be mixed: use 'vdvae' for that."
        )

    def autocast_layers(self) -> Iterable[nn.Module]:
        """Return the layers whose weights training may keep in bfloat16, so that autocast need not convert them.

        A layer belongs here only if it always runs under autocast, and autocast converts all of its weights: linear
        layers and convolutions. Leaving a layer out costs time and nothing else; by default, all are left out.
        """
        return ()

    def at_rest(self, samples: Tensor) -> Tensor:
        """Convert samples [b, *shape] to the dtype of the data: images to uint8; points stay as they are."""
        if len(self.shape) != 3:
            return samples
        return samples.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
