"""The generator T: a mapping network followed by a decoder.

The default is the architecture of Adaptive IMLE (Aghabozorgi, Peng, Li, ICML 2023), section 5, "Training Details": the
mapping network of StyleGAN (Karras et al., CVPR 2019) and the decoder of VDVAE (Child, arXiv 2011.10650).
"""

import copy
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imletriton.errors import InputError
from imletriton.generator.decoders.base import Decoder
from imletriton.generator.latents import latent_codes
from imletriton.generator.mappings.base import Mapping
from imletriton.generator.parameters import (
    DECODERS,
    MAPPINGS,
    MAX_LATENT_DIM,
    Cost,
    DecoderParameters,
    generator_cost,
    read_parameters,
)
from imletriton.runs.opening import Source, check_hub_id, open_source
from imletriton.system.memory import free_memory, size
from imletriton.system.registry import shown

# Samples are always made in whole batches of this size, because a convolution's last bits depend on its batch size.
SAMPLE_BATCH = 16

MODEL_CARD = """---
{{ card_data }}
---

A few-shot image generator trained by IMLE with imletriton.

```python
from imletriton import Generator

images = Generator.from_pretrained("this folder or its Hub id").sample(64, seed=0)  # uint8 [64, 3, H, W]
```
"""


class Generator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="imletriton",
    pipeline_tag="unconditional-image-generation",
    tags=["imle", "few-shot"],
    model_card_template=MODEL_CARD,
):
    """T(z): latent codes, float32 [b, latent_dim], to data points, float32 [b, *shape]; images are in [-1, 1].

    Follows the convention of the Hugging Face Hub (save_pretrained, from_pretrained, push_to_hub): config.json holds
    the arguments of the constructor, with all defaults filled in.

    Args:
        latent_dim: The dimension of a latent code.
        mapping: The name of the mapping: "mlp", "none", or another one; see docs/extending.md.
        decoder: The name of the decoder: "vdvae" for images, "mlp" for points in the plane, or another one.
        parameters: The parameters of mapping and decoder; see imletriton/generator/parameters.py.

    Raises:
        InputError: A name is not known, a parameter is unknown or wrong, or the weights do not fit into memory.
    """

    centre: Tensor
    spread: Tensor
    contrast: Tensor
    brightness: Tensor

    def __init__(self, latent_dim: int = 1024, mapping: str = "mlp", decoder: str = "vdvae", **parameters: Any) -> None:
        super().__init__()
        of_mapping, of_decoder, self.cost = _read(latent_dim, mapping, decoder, **parameters)
        if torch.get_default_device().type != "meta":
            _check_memory(f"A generator of {self.cost.weights:,} weights", 4 * self.cost.weights)
        self.latent_dim = latent_dim
        self.mapping: Mapping = MAPPINGS.find(mapping)(latent_dim, of_mapping)
        self.decoder: Decoder = DECODERS.find(decoder)(self.mapping.style_dim, of_decoder)
        # Calibration sets these in the averaged weights (`train.calibrate`); see `style` and `decode`.
        self.register_buffer("centre", torch.zeros(self.mapping.style_dim))
        self.register_buffer("spread", torch.ones(()))
        channels, *sides = self.shape
        self.register_buffer("contrast", torch.ones(channels, *[1] * len(sides)))
        self.register_buffer("brightness", torch.zeros_like(self.contrast))
        names = {"latent_dim": latent_dim, "mapping": mapping, "decoder": decoder}
        self._hub_mixin_config = names | of_mapping.model_dump(mode="json") | of_decoder.model_dump(mode="json")

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(self.style(z))

    def style(self, z: Tensor) -> Tensor:
        """Map latent codes, float32 [b, latent_dim], to styles [b, style_dim]: centre + spread * (mapping(z) - centre).

        The buffer `centre` is the mean of the mapping's styles, and `spread` is 1 unless training has calibrated it.
        With a spread below 1, this is StyleGAN's truncation (Karras et al., CVPR 2019, appendix B).
        """
        return torch.lerp(self.centre.to(z.dtype), self.mapping(z).to(z.dtype), self.spread.to(z.dtype))

    def decode(self, w: Tensor) -> Tensor:
        """Turn styles, [b, style_dim], into samples, float32 [b, *shape]: contrast * decoder(w) + brightness.

        The buffers `contrast` and `brightness`, of each channel, are 1 and 0 unless training has calibrated them.
        """
        return self._calibrated(self.decoder(w))

    def _calibrated(self, samples: Tensor) -> Tensor:
        return torch.addcmul(self.brightness, self.contrast, samples)

    def mix(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Mix the styles of latent codes by block (Karras et al., CVPR 2019, section 3.1).

        Args:
            coarse: Latent codes for the first third of the decoder's blocks, which decides on the layout; float32
                [b, latent_dim].
            middle: The same for the second third, which decides on shapes.
            fine: The same for the last third, which decides on colours and details.

        Returns:
            Samples, float32 [b, *shape]; those of `forward` where all three codes are the same.

        Raises:
            InputError: The decoder has no blocks.
        """
        return self._calibrated(self.decoder.mix(*map(self.style, (coarse, middle, fine))))

    def for_autocast(self) -> Self:
        """Return a copy for autocast to bfloat16, with the same results.

        The weights that autocast would convert in every call are bfloat16 parameters of the copy; it shares everything
        else with this generator. `parameters()` of both are in the same order.
        """
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        converted = {
            id(weight): nn.Parameter(weight.detach().bfloat16(), requires_grad=weight.requires_grad)
            for layer in (*self.mapping.autocast_layers(), *self.decoder.autocast_layers())
            for weight in layer.parameters()
        }
        return copy.deepcopy(self, shared | converted)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, H, W) for images, (2,) for points in the plane."""
        return self.decoder.shape

    @property
    def width(self) -> int:
        """Channels of the decoder's largest feature maps."""
        return self.decoder.width

    @torch.no_grad()
    def sample_batches(self, n: int, seed: int = 0, start: int = 0) -> Iterator[Tensor]:
        """Yield the samples that `sample` returns, in order, in batches of at most SAMPLE_BATCH."""
        device = next(self.parameters()).device
        if device.type == "cpu":
            _check_memory(f"A batch of {SAMPLE_BATCH} samples", SAMPLE_BATCH * self.cost.working)
        for first in range(start - start % SAMPLE_BATCH, start + n, SAMPLE_BATCH):
            z = latent_codes(first, first + SAMPLE_BATCH, self.latent_dim, seed=seed)
            yield self.draw(z)[max(start - first, 0) : start + n - first]

    @torch.no_grad()
    def draw(self, latents: Tensor) -> Tensor:
        """Make the samples of latent codes, in whole batches of SAMPLE_BATCH.

        Args:
            latents: float32 [n, latent_dim], on any device; n is at least 1.

        Returns:
            Images, uint8 [n, 3, H, W], or points, float32 [n, 2], on the generator's device.
        """
        device, samples = next(self.parameters()).device, list[Tensor]()
        for part in latents.split(SAMPLE_BATCH):
            whole = torch.cat([part, part[:1].expand(SAMPLE_BATCH - len(part), -1)])
            samples.append(self.decoder.at_rest(self(whole.to(device)))[: len(part)])
        return torch.cat(samples)

    def sample(self, n: int, seed: int = 0, start: int = 0) -> Tensor:
        """Make the samples start..start+n-1 of a random seed, from 0 to 2^32 - 1.

        On one device, sample k depends on (seed, k) alone, to the bit, however many samples are made at once.

        Returns:
            Images, uint8 [n, 3, H, W], or points, float32 [n, 2], on the generator's device.

        Raises:
            ValueError: n or seed is out of range.
        """
        if n < 1 or not 0 <= seed < 2**32:
            raise ValueError(f"n must be at least 1 and seed from 0 to 2^32 - 1, not {n} and {seed}")
        return torch.cat(list(self.sample_batches(n, seed, start)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | Source, **kwargs: Any) -> Self:
        """Load a generator with its EMA weights, in eval mode.

        Args:
            pretrained_model_name_or_path: A run, a checkpoint's folder, an id of the Hugging Face Hub, USER/NAME, or
                what `open_source` has opened.
            kwargs: See `PyTorchModelHubMixin.from_pretrained`.

        Raises:
            InputError: See `open_source`; or the model's files do not match each other.
        """
        source = pretrained_model_name_or_path
        if not isinstance(source, Source) and not Path(source).is_dir():
            check_hub_id(Path(source))
            return super().from_pretrained(str(source), strict=True, **kwargs)
        folder = open_source(source).checkpoint
        try:
            return super().from_pretrained(str(folder), **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise InputError(f"{folder / 'config.json'} does not describe a generator: {reason}.") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> Self:
        if not Path(model_id).is_dir():
            from_hub: Self = super()._from_pretrained(model_id=model_id, map_location=map_location, **kwargs)
            return from_hub
        for key in ("revision", "cache_dir", "force_download", "local_files_only", "token"):
            kwargs.pop(key, None)  # the Hub's own arguments
        file = Path(model_id) / "model.safetensors"
        try:
            *_, cost = _read(**kwargs)
            # A weight takes more than a byte. A small generator is built anyway, and then compared.
            if cost.weights > max(file.stat().st_size, 2**24):
                raise ValueError(f"the generator has {cost.weights:,} weights, more than {file} can hold")
            model = cls(**kwargs).to(map_location)
        except InputError as error:  # from_pretrained adds the file's name
            raise ValueError(str(error).rstrip(".")) from error
        try:
            model.load_state_dict(load_file(file, device=map_location))
        except (SafetensorError, KeyError) as error:  # a KeyError: numbers of a kind that PyTorch does not have
            raise InputError(f"{file} is damaged ({error}): use another checkpoint.") from error
        except RuntimeError as error:
            raise InputError(f"{file} belongs to another architecture than the config.json beside it.") from error
        model.eval()
        return model


def _read(
    latent_dim: int = 1024, mapping: str = "mlp", decoder: str = "vdvae", **parameters: Any
) -> tuple[BaseModel, DecoderParameters, Cost]:
    """Read the arguments of `Generator`: the parameters of its mapping and its decoder, and the memory it takes."""
    of_mapping, of_decoder = read_parameters(mapping, decoder, parameters)
    if type(latent_dim) is not int or not 1 <= latent_dim <= MAX_LATENT_DIM:
        raise InputError(f"latent_dim = {shown(latent_dim)}: it must be a whole number from 1 to {MAX_LATENT_DIM}.")
    return of_mapping, of_decoder, generator_cost(latent_dim, of_mapping, of_decoder, bfloat16=False)


def _check_memory(what: str, needed: int) -> None:
    """Raise InputError if something takes more bytes of main memory than are free."""
    if needed > (free := free_memory()):
        raise InputError(
            f"{what} takes about {size(needed)} of memory, and {size(free)} are free here: use a smaller generator, "
            "or a machine with more memory."
        )
