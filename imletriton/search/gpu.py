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
from imletriton.search.backends import check_unchanged
from imletriton.search.prepared import Prepared

SCRATCH_BYTES = 2**28  # rounded samples and bounds held at once
MOST_NEIGHBOURS = 1024  # the kernel keeps so many in registers
MOST_WITHIN = 2**21  # vectors on each side of add_within, whose tiles are numbered in 31 bits


@dataclass(frozen=True)
class Operand:
    """Vectors [k, d] as one side of a search: rounded about a centre and in a scale, as round_vectors returns them.

    bound and sq_norm are padded beyond k.
    """

    vectors: Tensor
    centre: Tensor
    scale: Tensor
    half: Tensor
    bound: Tensor
    sq_norm: Tensor
    finite: Tensor | None  # int64 [], how many of the vectors are finite; None where they are counted elsewhere too

    @classmethod
    def of(cls, vectors: Tensor, centre: Tensor, scale: Tensor, finite: Tensor | None = None) -> "Operand":
        """Round vectors; the number of finite ones is added to finite, int64 []."""
        vectors = vectors if vectors.stride(1) == 1 else vectors.contiguous()
        return cls(vectors, centre, scale, *round_vectors(vectors, centre, scale, finite), finite)

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, first: int, stop: int) -> "Operand":
        """The vectors from first to stop; both are multiples of PADDING, or stop is the end."""
        rows, padded = slice(first, stop), slice(first, -(-stop // PADDING) * PADDING)
        vectors, half = self.vectors[rows], self.half[rows]
        return replace(self, vectors=vectors, half=half, bound=self.bound[padded], sq_norm=self.sq_norm[padded])

    def without(self, left_out: Tensor) -> "Operand":
        """The same vectors, of which some are left out of the search: bool, as long as `bound`."""
        return replace(self, bound=self.bound.masked_fill(left_out, MASKED))


def check_queries(queries: Tensor) -> None:
    """Raise a ValueError for float64. Whether the queries are finite is not checked: the GPU would be waited for."""
    if queries.dtype == torch.float64:
        raise ValueError("float64 queries are for the CPU: on a GPU use float32, whose distances are as exact")


def prepare(vectors: Tensor, reference: Operand | None) -> Operand:
    """Round vectors about the centre of the reference and in its scale; without a reference, about their own."""
    centre, scale = start(vectors, 1)[:2] if reference is None else (reference.centre, reference.scale)
    return Operand.of(vectors, centre, scale, torch.zeros((), dtype=torch.int64, device=vectors.device))


class GPUSearch:
    """The running minimum over chunks: see Backend.start_search, and NearestSearch for the results.

    Raises:
        ValueError: k is greater than MOST_NEIGHBOURS.
    """

    def __init__(self, queries: Prepared, searching: Tensor | None, reject_radius: float, k: int) -> None:
        if k > MOST_NEIGHBOURS:
            raise ValueError(f"k must be at most {MOST_NEIGHBOURS} on a GPU, not {k}: search on the CPU instead")
        if queries.operand is None:
            centre, scale, self.sq_distance, self.index, self.accepted = start(queries.vectors, k)
            operand = Operand.of(queries.vectors, centre, scale)
        else:
            operand, device = queries.operand, queries.vectors.device
            self.sq_distance = torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=device)
            self.index = torch.full((len(queries), k), -1, device=device)
            self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._queries = self._searching = operand
        if searching is not None:  # the others are masked: nothing can be near them
            idle = torch.nn.functional.pad(~searching, (0, len(operand.bound) - len(searching)))
            self._searching = operand.without(idle)
        self._sq_radius = reject_radius * reject_radius

    def update(self, samples: Prepared, offset: int) -> None:
        """Compare the queries with more samples, [c, d]; offset is the index of the first one."""
        if samples.operand is not None:
            self.accepted += samples.operand.finite
        (n, d), queries = self._queries.vectors.shape, self._queries
        size = max(PADDING, SCRATCH_BYTES // (6 * d + 8 * n // 64 + 1) // PADDING * PADDING)
        for first in range(0, len(samples), size):
            stop = min(first + size, len(samples))
            if samples.operand is None:
                part = Operand.of(samples.vectors[first:stop], queries.centre, queries.scale, self.accepted)
            else:
                part = samples.operand.part(first, stop)
            self._update_block(part, offset + first)

    def _update_block(self, samples: Operand, offset: int) -> None:
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
        rows: Operand,
        columns: Operand,
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


start_search = GPUSearch


def count_within(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
    """Count the samples within their radius of each query; see Backend."""
    centre, scale, sq_distance, _, _ = start(queries, 1)
    count = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    _add_within(queries, samples, centre, scale, sq_radius, count, None)
    return count.masked_fill_(sq_distance[:, 0].isnan(), -1)


def pairs_within(queries: Tensor, samples: Tensor, sq_radius: Tensor, number: int) -> Tensor:
    """List the pairs of a query and a sample within its radius; see Backend."""
    centre, scale, *_ = start(queries, 1)
    codes = torch.empty(number, dtype=torch.int64, device=queries.device)
    written = torch.zeros((), dtype=torch.int64, device=queries.device)
    _add_within(queries, samples, centre, scale, sq_radius, written, codes)
    check_unchanged(int(written), number)
    m = max(1, len(samples))
    return torch.stack([codes // m, codes % m], 1)


def _add_within(
    queries: Tensor, samples: Tensor, centre: Tensor, scale: Tensor, sq_radius: Tensor, count: Tensor,
    codes: Tensor | None,
) -> None:  # fmt: skip
    """Call add_within with one part of the queries and of the samples after the other, which bounds the memory."""
    size = max(PADDING, min(MOST_WITHIN, SCRATCH_BYTES // (6 * queries.shape[1] + 1) // PADDING * PADDING))
    total = len(samples)
    for first_row, x in zip(range(0, len(queries), size), queries.split(size), strict=False):
        rows = Operand.of(x, centre, scale)
        for offset, y, y_radius in zip(range(0, total, size), samples.split(size), sq_radius.split(size), strict=False):
            columns = Operand.of(y, centre, scale)
            counted = count if codes is not None else count[first_row : first_row + len(x)]
            add_within(
                rows.vectors, columns.vectors, centre, scale, rows.sq_norm, rows.bound, columns.sq_norm,
                columns.bound, y_radius, counted, codes, total, first_row * total + offset,
            )  # fmt: skip
