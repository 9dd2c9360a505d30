"""The pool: m latent codes and the search features of the samples they turn into, made chunk by chunk."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imletriton.distance import Distance
from imletriton.generator import Generator, latent_codes
from imletriton.nearest import NearestSearch

CHUNK_BYTES = 256 * 2**20  # of images and embeddings alive at once, where no GPU says what is free


class SamplePool:
    """Samples T(z_1), ..., T(z_m) of a generator, as the search sees them.

    Holds `latents` float32 [m, latent_dim] and `features` float32 [m, d]; images live a chunk at a time. The latents
    of draw number r depend on (seed, r) alone.
    """

    def __init__(self, generator: Generator, distance: Distance, size: int, seed: int) -> None:
        self.generator, self.distance = generator, distance
        self.size, self.seed = size, seed
        self.device = next(generator.parameters()).device
        self.latents = torch.empty(0)
        self.features = torch.empty(0)
        self.chunk = self._chunk()

    def _chunk(self) -> int:
        """Samples a chunk, a power of two from 4 to 256: by what one costs in activations and embedding.

        Halved while drawing where it turns out too large for the GPU.
        """
        per_sample = 4 * math.prod(self.generator.shape[1:]) * (4 * self.generator.width + 500)
        room = torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else CHUNK_BYTES
        fitting = max(4, min(256, room // per_sample))
        return 1 << (fitting.bit_length() - 1)

    @torch.no_grad()
    def draw(self, number: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Draw the pool anew from the generator as it is now. progress is told how many samples are done."""
        self.latents = self._latents(number)
        done = 0
        while done < self.size:
            z = self.latents[done : done + self.chunk]
            try:
                features = self.distance.features(self.generator(z))
            except torch.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                self.chunk //= 2
                continue
            if self.features.shape != (self.size, features.shape[1]):
                self.features = features.new_empty(self.size, features.shape[1])
            self.features[done : done + len(z)] = features
            done += len(z)
            progress(done)

    def restore(self, number: int, features: Tensor) -> None:
        """Take up draw number r again from its features."""
        self.latents, self.features = self._latents(number), features.to(self.device)

    def _latents(self, number: int) -> Tensor:
        z = latent_codes(0, self.size, self.generator.latent_dim, seed=self.seed, stream=1 + number)
        return z.to(self.device)

    def nearest(
        self, queries: Tensor, searching: Tensor | None = None, reject_radius: float | None = None
    ) -> NearestSearch:
        """Search the pool as it was drawn; see NearestSearch."""
        search = NearestSearch(queries, searching, reject_radius)
        search.update(self.features)
        return search
