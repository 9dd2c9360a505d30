"""The search on a GPU, chunk by chunk, without waiting for it: round, scan, measure, refine where needed, decide."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imletriton.kernels.decide import MOST_GROUPS, decide
from imletriton.kernels.launch import scan_tile
from imletriton.kernels.refine import refine
from imletriton.kernels.rounding import MASKED, PADDING, round_vectors
from imletriton.kernels.scan import scan
from imletriton.kernels.start import start
from imletriton.kernels.within import add_within

SCRATCH_BYTES = 2**28  # rounded samples and bounds held at once
MOST_WITHIN = 2**21  # vectors on each side of add_within, whose tiles are numbered in 31 bits


@dataclass(frozen=True)
class RoundedVectors:
    """Vectors [k, d], and what round_vectors makes of them about a centre and scale.

    bound and sq_norm go on beyond k, where they are padded.
    """

    vectors: Tensor
    centre: Tensor
    scale: Tensor
    half: Tensor
    bound: Tensor
    sq_norm: Tensor
    finite: Tensor | None = None  # int64 [], how many of the vectors are; where they were rounded for several searches

    @classmethod
    def of(cls, vectors: Tensor, centre: Tensor, scale: Tensor, accepted: Tensor | None = None) -> "RoundedVectors":
        """Round vectors; the number of finite ones is added to accepted, int64 []."""
        vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        return cls(vectors, centre, scale, *round_vectors(vectors, centre, scale, accepted), accepted)

    @classmethod
    def about(cls, vectors: Tensor, reference: "RoundedVectors | None") -> "RoundedVectors":
        """Round vectors about the centre and in the scale of others; by default, of their own."""
        centre, scale = (reference.centre, reference.scale) if reference else start(vectors, 1)[:2]
        return cls.of(vectors, centre, scale, torch.zeros((), dtype=torch.int64, device=vectors.device))

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, first: int, stop: int) -> "RoundedVectors":
        """The vectors from first to stop; both are multiples of PADDING, or stop is the end."""
        rows, padded = slice(first, stop), slice(first, -(-stop // PADDING) * PADDING)
        vectors, half = self.vectors[rows], self.half[rows]
        return replace(self, vectors=vectors, half=half, bound=self.bound[padded], sq_norm=self.sq_norm[padded])

    def without(self, left_out: Tensor) -> "RoundedVectors":
        """The same vectors, of which some are left out of the search: bool, as long as `bound`."""
        return replace(self, bound=self.bound.masked_fill(left_out, MASKED))


class TritonSearch:
    """The running minimum over chunks on a GPU. NearestSearch checks the input and documents the results.

    Args:
        queries: float32, float16 or bfloat16 [n, d]; or these, rounded.
        searching: bool [n], the queries that want a neighbour; None for all.
        reject_radius: samples closer than this (not squared) to any query are left out; 0 for none.
        top: how many nearest samples are wanted.
    """

    def __init__(
        self, queries: Tensor | RoundedVectors, searching: Tensor | None, reject_radius: float, top: int = 1
    ) -> None:
        if isinstance(queries, Tensor):
            centre, scale, self.sq_distance, self.index, self.accepted = start(queries, top)
            queries = RoundedVectors.of(queries, centre, scale)
        else:
            shape, device = (len(queries), top), queries.vectors.device
            self.sq_distance = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
            self.index = torch.full(shape, -1, device=device)
            self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._queries = self._searching = queries
        if searching is not None:  # the others are masked: nothing can be near them
            idle = torch.nn.functional.pad(~searching, (0, len(queries.bound) - len(searching)))
            self._searching = queries.without(idle)
        self._sq_radius = reject_radius * reject_radius

    def update(self, chunk: Tensor | RoundedVectors, offset: int) -> None:
        """Compare the queries with more samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device; or these, rounded as the queries were.
            offset: the index of the first of them.
        """
        if isinstance(chunk, RoundedVectors):
            assert chunk.finite is not None
            self.accepted += chunk.finite
        n, d = self._queries.vectors.shape
        size = max(PADDING, SCRATCH_BYTES // (6 * d + 8 * n // 64 + 1) // PADDING * PADDING)
        for first in range(0, len(chunk), size):
            stop = min(first + size, len(chunk))
            if isinstance(chunk, Tensor):
                centre, scale = self._queries.centre, self._queries.scale
                samples = RoundedVectors.of(chunk[first:stop], centre, scale, self.accepted)
            else:
                samples = chunk.part(first, stop)
            self._update_block(samples, offset + first)

    def _update_block(self, samples: RoundedVectors, offset: int) -> None:
        if self._sq_radius:  # the same search with its sides swapped: has a sample a query within the radius?
            sq_distance = torch.full_like(samples.bound, self._sq_radius, dtype=torch.float64)[:, None]
            query = torch.full_like(samples.bound, -1, dtype=torch.int64)[:, None]
            self._improve(sq_distance, query, samples, self._queries, 0, any_will_do=True)
            rejected = query[:, 0] >= 0
            samples = samples.without(rejected)
            self.accepted -= rejected.sum()
        self._improve(self.sq_distance, self.index, self._searching, samples, offset)

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
        tile = scan_tile(best_index.device, len(rows), rows.half.shape[1])
        block_m, group = tile.block_m, tile.block_n
        still_open = best_index.new_empty(len(rows), dtype=torch.int8)
        for first_column in range(0, len(columns) if len(rows) else 0, MOST_GROUPS * group):
            part = columns.part(first_column, min(first_column + MOST_GROUPS * group, len(columns)))
            x, y = rows.vectors, part.vectors
            first, second, doubts, crowded = scan(rows.half, rows.bound, part.half, part.bound, block_m, group)
            best = best_sq_distance, best_index, still_open, doubts, crowded
            where = block_m, group, offset + first_column
            decide(x, y, part.bound, rows.scale, first, second, *best, *where, True, any_will_do)
            norms = rows.sq_norm, rows.bound, part.sq_norm, part.bound
            refine(x, y, rows.centre, rows.scale, *norms, crowded, first, second, block_m, group)
            decide(x, y, part.bound, rows.scale, first, second, *best, *where, False, any_will_do)


def count_within(queries: Tensor, pool: Tensor, sq_radius: Tensor) -> Tensor:
    """How many samples are within their radius of each query, int64 [n]; -1 for queries that are not finite.

    Args:
        queries: float32, float16 or bfloat16 [n, d].
        pool: the samples, [m, d].
        sq_radius: float64 [m], the squares of their radii.
    """
    centre, scale, sq_distance, _, _ = start(queries, 1)
    count = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    _add_within(queries, pool, centre, scale, sq_radius, count, None)
    return count.masked_fill_(sq_distance[:, 0].isnan(), -1)


def pairs_within(queries: Tensor, pool: Tensor, sq_radius: Tensor, number: int) -> Tensor:
    """The pairs of a query and a sample within its radius, int64 [number, 2], in any order.

    Args:
        queries: see count_within.
        pool: see count_within.
        sq_radius: see count_within.
        number: the number of pairs: the sum of what count_within returned for finite queries.
    """
    centre, scale, *_ = start(queries, 1)
    codes = torch.empty(number, dtype=torch.int64, device=queries.device)
    written = torch.zeros((), dtype=torch.int64, device=queries.device)
    _add_within(queries, pool, centre, scale, sq_radius, written, codes)
    if int(written) != number:
        raise ValueError("queries, pool or radius have changed between `count` and `pairs`")
    return torch.stack([codes // max(1, len(pool)), codes % max(1, len(pool))], 1)


def _add_within(
    queries: Tensor, pool: Tensor, centre: Tensor, scale: Tensor, sq_radius: Tensor, count: Tensor,
    codes: Tensor | None,
) -> None:  # fmt: skip
    """Call add_within with one part of the queries and of the pool after the other, which bounds the memory."""
    size = max(PADDING, min(MOST_WITHIN, SCRATCH_BYTES // (6 * queries.shape[1] + 1) // PADDING * PADDING))
    total = len(pool)
    for first_row, x in zip(range(0, len(queries), size), queries.split(size), strict=False):
        rows = RoundedVectors.of(x, centre, scale)
        for offset, y, y_radius in zip(range(0, total, size), pool.split(size), sq_radius.split(size), strict=False):
            columns = RoundedVectors.of(y, centre, scale)
            counted = count if codes is not None else count[first_row : first_row + len(x)]
            add_within(
                rows.vectors, columns.vectors, centre, scale, rows.sq_norm, rows.bound, columns.sq_norm,
                columns.bound, y_radius, counted, codes, total, first_row * total + offset,
            )  # fmt: skip
