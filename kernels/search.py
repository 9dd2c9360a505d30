"""The search on a GPU: round, scan, measure, refine where needed, decide; chunk by chunk, without synchronisation."""

import torch
from torch import Tensor

from imletriton.kernels.decide import decide
from imletriton.kernels.launch import scan_tile
from imletriton.kernels.refine import refine
from imletriton.kernels.rounding import MASKED, round_vectors
from imletriton.kernels.scan import scan

SCRATCH_BYTES = 2**27  # rounded samples and bounds held at once
MOST_GROUPS = 512  # that a program of decide keeps in registers


class Rounded:
    """Vectors [k, d] and what round_vectors makes of them."""

    def __init__(self, vectors: Tensor, centre: Tensor, scale: Tensor) -> None:
        self.vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        self.half, self.bound, self.sq_norm = round_vectors(self.vectors, centre, scale)

    def __getitem__(self, rows: Tensor | slice) -> "Rounded":
        part = object.__new__(Rounded)
        part.vectors, part.half, part.bound, part.sq_norm = (
            v[rows] for v in (self.vectors, self.half, self.bound, self.sq_norm)
        )
        return part


class TritonSearch:
    """The running minimum over chunks. NearestSearch checks the input and says what the results mean."""

    def __init__(self, queries: Tensor, searching: Tensor | None, reject_radius: float) -> None:
        n, d = queries.shape
        device = queries.device
        self.sq_distance = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self.index = torch.full((n,), -1, device=device)
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._searching = None if searching is None else searching.nonzero()[:, 0]
        self._sq_radius = reject_radius**2
        self._centre = queries.mean(0, dtype=torch.float64).float() if n else queries.new_zeros(d, dtype=torch.float32)
        # The longest query comes to at most 2^8. One query alone has length 0: then the centre's length must do.
        longest = (
            torch.linalg.vector_norm(queries.double() - self._centre, dim=1).amax() if n else self._centre.new_zeros(())
        )
        length = torch.where(longest > 0, longest * (1 + 1e-6), torch.linalg.vector_norm(self._centre.double()))
        power = torch.where(length > 0, 8 - torch.frexp(length).exponent, 0)
        self._scale = torch.ldexp(torch.ones((), device=device), power.clamp(-100, 100)).float()
        self._queries = Rounded(queries, self._centre, self._scale)
        self._seekers = self._queries if self._searching is None else self._queries[self._searching]

    def update(self, chunk: Tensor, offset: int) -> None:
        """Compare samples, [c, d]; the first has index offset."""
        n, d = self._queries.vectors.shape
        group = scan_tile(chunk.device, n).columns
        size = SCRATCH_BYTES // (2 * d + 8 * n // group + 1)
        for samples in chunk.split(max(group, min(size, MOST_GROUPS * group) // group * group)):
            self._update_part(Rounded(samples, self._centre, self._scale), offset)
            offset += len(samples)

    def _update_part(self, samples: Rounded, offset: int) -> None:
        if self._sq_radius:  # the same search with sides swapped: has a sample a query within the radius?
            sq_distance = torch.full_like(samples.bound, self._sq_radius, dtype=torch.float64)
            query = torch.full_like(samples.bound, -1, dtype=torch.int64)
            self._improve(sq_distance, query, samples, self._queries, 0, any_will_do=True)
            samples.bound = torch.where(query < 0, samples.bound, MASKED)
        self.accepted += (samples.bound < MASKED / 10).sum()
        if self._searching is None:
            self._improve(self.sq_distance, self.index, self._queries, samples, offset)
        else:
            sq_distance, index = self.sq_distance[self._searching], self.index[self._searching]
            self._improve(sq_distance, index, self._seekers, samples, offset)
            self.sq_distance[self._searching], self.index[self._searching] = sq_distance, index

    def _improve(
        self, best: Tensor, index: Tensor, rows: Rounded, columns: Rounded, offset: int, any_will_do: bool = False
    ) -> None:
        """Lower best and set index, in place, where a column is nearer to a row than its best, or just any that is."""
        group = scan_tile(best.device, len(best)).columns
        for start in range(0, len(columns.vectors) if len(best) else 0, MOST_GROUPS * group):
            part = columns[slice(start, start + MOST_GROUPS * group)]
            pair = rows.vectors, part.vectors
            first, second = scan(rows.half, rows.bound, part.half, part.bound, group)
            known = first, second, best, index, group, offset + start
            decide(*pair, part.bound, self._scale, *known, True, any_will_do)
            norms = rows.sq_norm, part.sq_norm
            refine(*pair, self._centre, self._scale, *norms, part.bound, best, first, second, group)
            decide(*pair, part.bound, self._scale, *known, False, any_will_do)
