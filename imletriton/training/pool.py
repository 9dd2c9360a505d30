"""The pool: m latent codes, and the search features of the samples that the generator makes of them."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import Distance
from imletriton.generator import Generator, latent_codes, latent_codes_at
from imletriton.search import NearestSearch, Prepared
from imletriton.system.device import autocast
from imletriton.system.distributed import ALONE, Group
from imletriton.training.memory import CHUNK_BYTES

Features = Callable[[Tensor], Tensor]  # from latent codes, float32 [k, latent_dim], to search features, float32 [k, d]


class PoolNeighbours(NamedTuple):
    """The nearest admissible sample to each of n data points; see NearestSearch."""

    sq_distance: Tensor  # float32 [n]; inf where there is none
    index: Tensor  # type: ignore[assignment]  # int64 [n]; -1 where there is none
    accepted: Tensor  # int64 [], how many of the pool's samples were admissible


class SamplePool:
    """Samples T(z_1), ..., T(z_m) of a generator, as the nearest-neighbour search sees them.

    Holds `features`, float32 [m, d], also as `prepared` for the searches of a round. Of the samples and of their latent
    codes only one chunk exists at a time; codes that are asked for are drawn again. Each process of a group makes and
    searches its share of the samples.

    Args:
        generator: T.
        distance: Gives the search features of the samples.
        points: The search features of the data points, float32 [n, d].
        size: m.
        seed: The latent codes of the pool's draw number r follow from (seed, r) alone.
        group: The processes that train together.
        bfloat16: Whether the networks multiply in bfloat16.
    """

    def __init__(
        self,
        generator: Generator,
        distance: Distance,
        points: Prepared,
        size: int,
        seed: int,
        group: Group = ALONE,
        bfloat16: bool = False,
    ) -> None:
        self.generator, self.distance, self.points = generator, distance, points
        self.size, self.seed, self.group, self.uses_bfloat16 = size, seed, group, bfloat16
        self.device = next(generator.parameters()).device
        self.number = 0  # of the newest draw
        self.features = torch.empty(0)
        self.prepared = self.share = Prepared(points.vectors[:0], points)  # of all processes, and of this one
        self.chunk = self._chunk_size()
        self.replace_features(None)

    def replace_features(self, compiler: Callable[[Features], Features] | None) -> None:
        """Compile what makes the search features of samples, and draw chunks of one size from now on.

        Args:
            compiler: Returns a compiled form of the function it is given; None goes back to that function itself.
        """
        self.make_features = compiler(self._make_features) if compiler else self._make_features
        self.fixed_chunks = compiler is not None

    def _make_features(self, z: Tensor) -> Tensor:
        """The search features of the samples T(z)."""
        return self.distance.features(self.generator(z))

    @torch.no_grad()
    def warm_up(self) -> None:
        """Make the features of one chunk three times: to compile, to warm up and to record a CUDA graph."""
        z = torch.zeros(self.chunk, self.generator.latent_dim, device=self.device)
        for _ in range(3):
            with autocast(self.device, self.uses_bfloat16):
                self.make_features(z)

    def _chunk_size(self) -> int:
        """Samples in a chunk: a power of two from 4 to 256, by the memory that one sample takes.

        `draw` halves it where it turns out to be too large for the GPU.
        """
        per_sample = 4 * math.prod(self.generator.shape[1:]) * (4 * self.generator.width + 500)
        free = torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else CHUNK_BYTES
        fitting = max(4, min(256, free // per_sample))
        return 1 << (fitting.bit_length() - 1)

    @torch.no_grad()
    def draw(self, number: int) -> Iterator[int]:
        """Draw the pool anew from the generator as it is now: draw number `number`.

        Yields:
            After each chunk, how many of the m samples exist. The pool is complete once the iterator is exhausted.
        """
        self.number = number
        self.prepared = self.share = Prepared(self.points.vectors[:0], self.points)  # the features are about to change
        share = self.group.share(self.size)
        done = share.start
        while done < share.stop:
            z = self.latents(done, min(done + self.chunk, share.stop))
            padding = self.chunk - len(z) if self.fixed_chunks else 0
            try:
                with autocast(self.device, self.uses_bfloat16):
                    features = self.make_features(F.pad(z, (0, 0, 0, padding)))[: len(z)]
            except torch.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                self.chunk //= 2
                continue
            if self.features.shape != (self.size, features.shape[1]):
                self.features = features.new_empty(self.size, features.shape[1])
            self.features[done : done + len(z)] = features
            done += len(z)
            yield min(self.size, (done - share.start) * self.group.size)
        self.group.complete(self.features)
        self._prepare()

    def restore(self, number: int, features: Tensor) -> None:
        """Go back to draw number `number`, whose features, float32 [m, d], were saved."""
        self.number, self.features = number, features.to(self.device)
        self._prepare()

    def _prepare(self) -> None:
        """Prepare the samples for the searches of a round, which share the rounding of the features."""
        self.prepared = self.share = Prepared(self.features, self.points)
        if self.group.size > 1:
            self.share = Prepared(self.features[self.group.share(self.size)], self.points)

    def latents(self, start: int, stop: int) -> Tensor:
        """The latent codes of samples start..stop-1 of the newest draw, float32 [stop - start, latent_dim]."""
        z = latent_codes(start, stop, self.generator.latent_dim, seed=self.seed, stream=1 + self.number)
        return z.to(self.device)

    def latents_at(self, index: Tensor) -> Tensor:
        """The latent codes, float32 [k, latent_dim], of some samples of the newest draw, at index, int64 [k]."""
        z = latent_codes_at(index, self.generator.latent_dim, seed=self.seed, stream=1 + self.number)
        return z.to(self.device)

    def nearest(self, searching: Tensor | None = None, reject_radius: float | None = None) -> PoolNeighbours:
        """The nearest admissible sample of the pool to each data point.

        Args:
            searching: bool [n], the data points that want a neighbour; all by default.
            reject_radius: Samples closer than this to any data point are left out; see NearestSearch.
        """
        search = NearestSearch(self.points, searching, reject_radius)
        search.update(self.share)
        index = torch.where(search.index >= 0, search.index + self.group.share(self.size).start, -1)
        sq_distance, index = self.group.least(search.exact_sq_distance, index)
        return PoolNeighbours(sq_distance.float(), index, self.group.total(search.accepted))
