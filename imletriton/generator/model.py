"""The generator T: a mapping network and a decoder, joined.

Architecture: Adaptive IMLE (Aghabozorgi, Peng, Li, ICML 2023), section 5, "Training Details": the decoder of
VDVAE (Child, arXiv 2011.10650) under the mapping network of StyleGAN (Karras et al., CVPR 2019).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imletriton.errors import InputError
from imletriton.generator.decoders.mlp import MLPDecoder
from imletriton.generator.decoders.vdvae import VDVAEDecoder
from imletriton.generator.latents import latent_codes
from imletriton.generator.mappings.mlp import MLPMapping
from imletriton.generator.mappings.none import NoMapping
from imletriton.runs.opening import open_source
from imletriton.system.device import in_float32

# The papers' 28 blocks for 256x256 images.
PAPER_BLOCKS = "1x4,4m1,4x4,8m4,8x4,16m8,16x3,32m16,32x2,64m32,64x2,128m64,128x2,256m128"

# Samples are always made in whole batches of this many, since a convolution's last bits depend on its batch.
SAMPLE_BATCH = 16

MAPPINGS: dict[str, Any] = {"mlp": MLPMapping, "none": lambda latent_dim, layers: NoMapping()}
DECODERS: dict[str, Any] = {"vdvae": VDVAEDecoder, "mlp": MLPDecoder}


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
    """T(z): latent codes, float32 [b, latent_dim], to data points, float32 [b, ...] (images in [-1, 1]).

    mapping: a name in MAPPINGS; decoder: a name in DECODERS. width: channels at every resolution. blocks: see
    parse_blocks. bottleneck: a block's middle width as a share of width. Follows the Hugging Face Hub convention.
    """

    def __init__(
        self,
        latent_dim: int = 1024,
        mapping: str = "mlp",
        mapping_layers: int = 8,
        decoder: str = "vdvae",
        width: int = 384,
        blocks: str = PAPER_BLOCKS,
        bottleneck: float = 0.25,
    ) -> None:
        super().__init__()
        self.latent_dim, self.width = latent_dim, width
        self.mapping = MAPPINGS[mapping](latent_dim, mapping_layers)
        self.decoder = DECODERS[decoder](latent_dim, width, blocks, bottleneck)

    def forward(self, z: Tensor) -> Tensor:
        with in_float32(z):
            w = self.mapping(z)
        samples: Tensor = self.decoder(w)
        return samples

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, H, W) for images."""
        shape: tuple[int, ...] = self.decoder.shape
        return shape

    @torch.no_grad()
    def sample_batches(self, n: int, seed: int = 0, start: int = 0) -> Iterator[Tensor]:
        """Samples start..start+n-1 of a seed in order, in batches of at most SAMPLE_BATCH, as `sample` gives them."""
        device = next(self.parameters()).device
        for first in range(start - start % SAMPLE_BATCH, start + n, SAMPLE_BATCH):
            z = latent_codes(first, first + SAMPLE_BATCH, self.latent_dim, seed=seed)
            batch = self.decoder.at_rest(self(z.to(device)))
            yield batch[max(start - first, 0) : start + n - first]

    def sample(self, n: int, seed: int = 0, start: int = 0) -> Tensor:
        """Samples start..start+n-1 of a seed: uint8 [n, 3, H, W] on the generator's device (images).

        Sample k depends on (seed, k) alone, to the bit on one device, however many are made at once.
        """
        if n < 1 or not 0 <= seed < 2**32:
            raise ValueError(f"n must be at least 1 and seed from 0 to 2^32 - 1, not {n} and {seed}")
        return torch.cat(list(self.sample_batches(n, seed, start)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The generator of a run (its newest checkpoint), of a checkpoint's folder, or of a Hub id; in eval mode.

        Holds the EMA weights. Raises InputError where a local folder's files are missing, damaged or do not agree.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            return super().from_pretrained(str(pretrained_model_name_or_path), strict=True, **kwargs)
        folder = open_source(path).checkpoint
        try:
            return super().from_pretrained(str(folder), **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder / 'config.json'} does not describe a generator: {error}.") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> Self:
        if not Path(model_id).is_dir():
            from_hub: Self = super()._from_pretrained(model_id=model_id, map_location=map_location, **kwargs)
            return from_hub
        for key in ("revision", "cache_dir", "force_download", "local_files_only", "token"):
            kwargs.pop(key, None)  # the Hub's own arguments
        model = cls(**kwargs).to(map_location)
        file = Path(model_id) / "model.safetensors"
        try:
            model.load_state_dict(load_file(file, device=map_location))
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}): use another checkpoint.") from error
        except RuntimeError as error:
            raise InputError(f"{file} belongs to another architecture than the config.json beside it.") from error
        model.eval()
        return model
