"""The search on a GPU, chunk by chunk, without synchronisation: round, scan, measure, refine where needed, decide."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imletriton.kernels.decide import decide
from imletriton.kernels.launch import scan_tile
from imletriton.kernels.refine import refine
from imletriton.kernels.rounding import MASKED, round_vectors
from imletriton.kernels.scan import scan

SCRATCH_BYTES = 2**27  # rounded samples and bounds held at once
MOST_GROUPS = 512  # that a program of decide keeps in registers


@dataclass
class RoundedVectors:
    """Vectors [k, d] and what round_vectors makes of them."""

    vectors: Tensor
    half: Tensor
    bound: Tensor
    sq_norm: Tensor

    @classmethod
    def of(cls, vectors: Tensor, centre: Tensor, scale: Tensor) -> "RoundedVectors":
        vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        return cls(vectors, *round_vectors(vectors, centre, scale))

    def __getitem__(self, rows: Tensor | slice) -> "RoundedVectors":
        return RoundedVectors(self.vectors[rows], self.half[rows], self.bound[rows], self.sq_norm[rows])


class TritonSearch:
    """The running minimum over chunks on a GPU. NearestSearch checks the input and documents the results.

    Args:
        queries: float32, float16 or bfloat16 [n, d], finite.
        searching: bool [n], the queries that want a neighbour; None for all.
        reject_radius: samples closer than this (not squared) to any query are left out; 0 for none.
    """

    def __init__(self, queries: Tensor, searching: Tensor | None, reject_radius: float) -> None:
        n, d = queries.shape
        device = queries.device
        self.sq_distance = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self.index = torch.full((n,), -1, device=device)
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._searching = None if searching is None else searching.nonzero()[:, 0]
        self._sq_radius = reject_radius**2
        self._centre = queries.mean(0, dtype=torch.float64).float() if n else queries.new_zeros(d, dtype=torch.float32)
        # The longest query comes to at most 2^8. A single query has length 0, so the centre's length is taken instead.
        longest = (
            torch.linalg.vector_norm(queries.double() - self._centre, dim=1).amax() if n else self._centre.new_zeros(())
        )
        length = torch.where(longest > 0, longest * (1 + 1e-6), torch.linalg.vector_norm(self._centre.double()))
        exponent = torch.where(length > 0, 8 - torch.frexp(length).exponent, 0)
        self._scale = torch.ldexp(torch.ones((), device=device), exponent.clamp(-100, 100)).float()
        self._queries = RoundedVectors.of(queries, self._centre, self._scale)
        self._searching_queries = self._queries if self._searching is None else self._queries[self._searching]

    def update(self, chunk: Tensor, offset: int) -> None:
        """Compare the queries with more samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device.
            offset: the index of the first of them.
        """
        n, d = self._queries.vectors.shape
        group = scan_tile(chunk.device, n).block_n
        size = SCRATCH_BYTES // (2 * d + 8 * n // group + 1)
        for samples in chunk.split(max(group, min(size, MOST_GROUPS * group) // group * group)):
            self._update_block(RoundedVectors.of(samples, self._centre, self._scale), offset)
            offset += len(samples)

    def _update_block(self, samples: RoundedVectors, offset: int) -> None:
        if self._sq_radius:  # the same search with its sides swapped: has a sample a query within the radius?
            sq_distance = torch.full_like(samples.bound, self._sq_radius, dtype=torch.float64)
            query = torch.full_like(samples.bound, -1, dtype=torch.int64)
            self._improve(sq_distance, query, samples, self._queries, 0, any_will_do=True)
            samples.bound = torch.where(query < 0, samples.bound, MASKED)
        self.accepted += (samples.bound < MASKED / 10).sum()
        if self._searching is None:
            self._improve(self.sq_distance, self.index, self._queries, samples, offset)
        else:
            sq_distance, index = self.sq_distance[self._searching], self.index[self._searching]
            self._improve(sq_distance, index, self._searching_queries, samples, offset)
            self.sq_distance[self._searching], self.index[self._searching] = sq_distance, index

    def _improve(
        self,
        best_sq_distance: Tensor,
        best_index: Tensor,
        rows: RoundedVectors,
        columns: RoundedVectors,
        offset: int,
        any_will_do: bool = False,
    ) -> None:
        """Lower best_sq_distance and set best_index, in place, where a column is nearer to a row.

        any_will_do: rows that have an index stay as they are.
        """
        group = scan_tile(best_index.device, len(best_index)).block_n
        for start in range(0, len(columns.vectors) if len(best_index) else 0, MOST_GROUPS * group):
            part = columns[slice(start, start + MOST_GROUPS * group)]
            x, y = rows.vectors, part.vectors
            first, second = scan(rows.half, rows.bound, part.half, part.bound, group)
            state = first, second, best_sq_distance, best_index, group, offset + start
            decide(x, y, part.bound, self._scale, *state, True, any_will_do)
            norms = rows.sq_norm, part.sq_norm
            refine(x, y, self._centre, self._scale, *norms, part.bound, best_sq_distance, first, second, group)
            decide(x, y, part.bound, self._scale, *state, False, any_will_do)
