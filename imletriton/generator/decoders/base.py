"""The interface of decoders."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imletriton.errors import InputError
from imletriton.generator.parameters import DECODERS, DecoderParameters


class Decoder(nn.Module, ABC):
    """Turns the style w that a mapping gives into a sample: an image, or a point in the plane.

    A subclass gives:

    - `name`;
    - `Parameters`, a subclass of `DecoderParameters`, whose method `shape()` says which samples these parameters make;
    - `width`, the number of channels of its largest feature maps, or of the units of a layer. The pool estimates by it
      how many samples fit into memory at once: about `4 * width` floating-point numbers for each pixel of a sample;
    - `forward`;
    - if it likes, `mix`, if it has blocks that can be given different styles;
    - if it likes, `autocast_layers`, which saves converting weights in every call.

    Defining a subclass makes its name known; docs/extending.md has an example of a mapping, which works alike.

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
            raise TypeError(f"{cls.__name__}.Parameters has to be a subclass of DecoderParameters that defines shape()")
        DECODERS.register(cls)

    def __init__(self, style_dim: int, settings: DecoderParameters) -> None:
        super().__init__()
        self.settings, self.shape = settings, settings.shape()

    @abstractmethod
    def forward(self, w: Tensor) -> Tensor:
        """Turn styles w, float32 [b, style_dim], into samples, float32 [b, *shape]; images are in [-1, 1]."""

    def mix(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Turn three styles into each sample: one for its layout, one for shapes, one for colours and details.

        Args:
            coarse: What modulates the first third of the blocks, float32 [b, style_dim].
            middle: The same for the second third.
            fine: The same for the last third. Where all three are the same style, the result is that of `forward`.

        Returns:
            Samples, float32 [b, *shape].

        Raises:
            InputError: The decoder does not define this method.
        """
        raise InputError(
            f"generator.decoder {self.name!r} has no blocks whose styles can be mixed: use 'vdvae' for that."
        )

    def autocast_layers(self) -> Iterable[nn.Module]:
        """Return the layers whose weights autocast would convert to bfloat16 in every call.

        Where training multiplies in bfloat16, it calls the decoder with these weights held in bfloat16. A layer belongs
        here only if it always runs under autocast, and if autocast converts all of its weights: linear layers and
        convolutions. To leave a layer out costs time and nothing else; by default, all are left out.
        """
        return ()

    def at_rest(self, samples: Tensor) -> Tensor:
        """Convert samples [b, *shape] to the form of the data: images to uint8; points stay as they are."""
        if len(self.shape) != 3:
            return samples
        return samples.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
