"""The pool: m latent codes and the search features of the samples they turn into, made chunk by chunk."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import Distance
from imletriton.generator import Generator, latent_codes
from imletriton.search import NearestSearch
from imletriton.system.distributed import ALONE, Group

CHUNK_BYTES = 512 * 2**20  # of images and embeddings alive at once, where no GPU says what is free


class Found(NamedTuple):
    """Of each query, the nearest admissible sample: see NearestSearch."""

    sq_distance: Tensor  # float32 [n]; inf: none
    index: Tensor  # type: ignore[assignment]  # int64 [n]; -1: none
    accepted: Tensor  # int64 [], samples


class SamplePool:
    """Samples T(z_1), ..., T(z_m) of a generator, as the search sees them.

    Holds `latents` float32 [m, latent_dim] and `features` float32 [m, d]; images live a chunk at a time. The latents
    of draw number r depend on (seed, r) alone. Each process of a group makes and searches its share of the samples.
    """

    def __init__(self, generator: Generator, distance: Distance, size: int, seed: int, group: Group = ALONE) -> None:
        self.generator, self.distance = generator, distance
        self.size, self.seed, self.group = size, seed, group
        self.device = next(generator.parameters()).device
        self.latents = torch.empty(0)
        self.features = torch.empty(0)
        self.chunk = self._chunk()
        self.make: Callable[[Tensor], Tensor] = self._make
        self.fixed = False  # whether every chunk must have the same size, as compiled code wants

    def _make(self, z: Tensor) -> Tensor:
        """The search features of T(z)."""
        return self.distance.features(self.generator(z))

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
        share = self.group.share(self.size)
        done = share.start
        while done < share.stop:
            z = self.latents[done : min(done + self.chunk, share.stop)]
            missing = self.chunk - len(z) if self.fixed else 0
            try:
                features = self.make(F.pad(z, (0, 0, 0, missing)))[: len(z)]
            except torch.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                self.chunk //= 2
                continue
            if self.features.shape != (self.size, features.shape[1]):
                self.features = features.new_empty(self.size, features.shape[1])
            self.features[done : done + len(z)] = features
            done += len(z)
            progress(min(self.size, (done - share.start) * self.group.size))
        self.group.complete(self.features)

    def restore(self, number: int, features: Tensor) -> None:
        """Take up draw number r again from its features."""
        self.latents, self.features = self._latents(number), features.to(self.device)

    def _latents(self, number: int) -> Tensor:
        z = latent_codes(0, self.size, self.generator.latent_dim, seed=self.seed, stream=1 + number)
        return z.to(self.device)

    def nearest(self, queries: Tensor, searching: Tensor | None = None, reject_radius: float | None = None) -> Found:
        """Search the pool as it was drawn; see NearestSearch."""
        share = self.group.share(self.size)
        search = NearestSearch(queries, searching, reject_radius)
        search.update(self.features[share])
        index = torch.where(search.index >= 0, search.index + share.start, -1)
        sq_distance, index = self.group.least(search.exact_sq_distance, index)
        return Found(sq_distance.float(), index, self.group.total(search.accepted))
