"""The nearest-neighbour search on a CPU: fast blocked products propose candidates, differences decide.

A product of rounded vectors gives, for every pair, a lower bound of the squared distance (see operands.py). Only pairs
whose bound lies below the least distance known so far are measured, from differences. Where rounding leaves too many of
them, the next finer product is computed first: bfloat16 (where the processor multiplies it), float32, float64.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from imletriton.search.operands import BFLOAT16, FLOAT32, FLOAT64, GROUP, SCRATCH, Level, Operand
from imletriton.system.device import multiplies_bfloat16

ROWS = 4096  # rows of products held at once
BLOCK_VALUES = 2**23  # products held at once; of samples' values twice as many
MEASURED_VALUES = 2**20  # differences held at once
FEW_ROWS = 1024  # for so many rows at most the product is computed transposed
MOST_CANDIDATE_GROUPS = 16  # a row with candidates in more groups gets a finer product first
LARGEST_HALF_BOUND = 1e37  # vectors whose half squared norm is above this fit float64 only


@dataclass
class RunningMinimum:
    """The least squared distance of each row so far, float64 [k], and the index of its sample, int64 [k] (-1: none)."""

    sq_distance: Tensor
    index: Tensor

    @classmethod
    def starting_at(cls, k: int, sq_distance: float) -> "RunningMinimum":
        """No sample yet: only those nearer than sq_distance will count."""
        return cls(torch.full((k,), sq_distance, dtype=torch.float64), torch.full((k,), -1))

    def __getitem__(self, rows: slice | Tensor) -> "RunningMinimum":
        return RunningMinimum(self.sq_distance[rows], self.index[rows])

    def __setitem__(self, rows: slice | Tensor, value: "RunningMinimum") -> None:
        self.sq_distance[rows], self.index[rows] = value.sq_distance, value.index

    def update(self, row: Tensor, index: Tensor, sq_distance: Tensor) -> None:
        """Take measured pairs into account: the lowest index wins ties, and NaN and infinity never win.

        Args:
            row: int64 [pairs], in any order; a row may occur many times.
            index: int64 [pairs], the index of each pair's sample.
            sq_distance: float64 [pairs].
        """
        sq_distance = torch.where(sq_distance.isfinite(), sq_distance, torch.inf)
        least = torch.full_like(self.sq_distance, torch.inf).scatter_reduce_(0, row, sq_distance, "amin")
        none = torch.iinfo(torch.int64).max
        winner = torch.where((sq_distance == least[row]) & sq_distance.isfinite(), index, none)
        lowest = torch.full_like(self.index, none).scatter_reduce_(0, row, winner, "amin")
        better = (least < self.sq_distance) | ((least == self.sq_distance) & (lowest < self.index))
        self.sq_distance.copy_(torch.where(better, least, self.sq_distance))
        self.index.copy_(torch.where(better, lowest, self.index))


def sq_distances(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|x_i - y_j|^2 of pairs, float64 [pairs], from differences in float32 or better: one rounding each, so 2^-23.

    Args:
        x: floating-point [n, d].
        y: floating-point [m, d].
        i: int64 [pairs], the rows of x.
        j: int64 [pairs], the rows of y.
    """
    sq_distance = torch.empty(len(i), dtype=torch.float64)
    dtype = torch.promote_types(x.dtype, torch.float32)
    step = max(1, MEASURED_VALUES // max(1, x.shape[1]))
    for pairs in (slice(start, start + step) for start in range(0, len(i), step)):
        difference = x.index_select(0, i[pairs]).to(dtype) - y.index_select(0, j[pairs]).to(dtype)
        sq_distance[pairs] = difference.double().square_().sum(1)
    return sq_distance


class BlockedSearch:
    """The running minimum over chunks on a CPU. NearestSearch checks the input and documents the results.

    Args:
        queries: floating-point [n, d], finite.
        searching: bool [n], the queries that want a neighbour; None for all.
        reject_radius: samples closer than this (not squared) to any query are left out; 0 for none.
        k: how many neighbours each query gets.
    """

    def __init__(self, queries: Tensor, searching: Tensor | None, reject_radius: float, k: int = 1) -> None:
        if k > 1:
            raise NotImplementedError("k > 1")
        n, d = queries.shape
        self.minimum = RunningMinimum.starting_at(n, torch.inf)
        self.accepted = torch.zeros((), dtype=torch.int64)
        self._queries = queries
        self._searching: slice | Tensor = slice(None)
        if searching is not None:
            # Padded to whole groups by repeats: oneDNN keeps most of a megabyte for each number of rows it has seen.
            rows = searching.nonzero()[:, 0]
            self._searching = torch.cat([rows, rows[-1:].expand(-len(rows) % GROUP)])
        self._sq_radius = reject_radius**2
        # Any centre serves, a good one makes the bounds tight; it is float32, so that subtracting it is one rounding.
        centre = queries.mean(0, dtype=torch.promote_types(queries.dtype, torch.float32)).float()
        spread = torch.linalg.vector_norm(queries[:1] - centre) if n else 0.0
        self._centre = centre if torch.linalg.vector_norm(centre) > spread / 8 else None  # else not worth the pass
        self._levels = (
            [BFLOAT16, FLOAT32, FLOAT64] if multiplies_bfloat16(queries.device) and d >= GROUP else [FLOAT32, FLOAT64]
        )
        self._query_operand = Operand.of(queries, self._levels[0], self._centre)
        if not (self._query_operand.half_bound < LARGEST_HALF_BOUND).all():
            self._levels = [FLOAT64]
            self._query_operand = Operand.of(queries, FLOAT64, self._centre)
        self._searching_operand = self._query_operand[self._searching]

    @property
    def sq_distance(self) -> Tensor:
        """The least squared distances so far, float64 [n, k]; inf: none."""
        return self.minimum.sq_distance[:, None]

    @property
    def index(self) -> Tensor:
        """The indices of the samples that have them, int64 [n, k]; -1: none."""
        return self.minimum.index[:, None]

    def update(self, chunk: Tensor, offset: int) -> None:
        """Compare the queries with more samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device.
            offset: the index of the first of them.
        """
        n, d = self._queries.shape
        width = BLOCK_VALUES // max(min(n, ROWS), d // 2, GROUP)
        for block in chunk.tensor_split(-(-len(chunk) // width)) if len(chunk) else ():
            self._update_block(block, offset)
            offset += len(block)

    def _update_block(self, block: Tensor, offset: int) -> None:
        levels, queries, searching = self._levels, self._query_operand, self._searching_operand
        samples = Operand.of(block, levels[0], self._centre, "samples")
        admissible = samples.half_bound < LARGEST_HALF_BOUND  # false for NaN
        if not admissible.all():
            finite = block.isfinite().all(1)
            if (finite & ~admissible).any():
                levels = [FLOAT64]
                queries, samples = (Operand.of(v, FLOAT64, self._centre) for v in (self._queries, block))
                searching = queries[self._searching]
            admissible = finite
        if self._sq_radius:  # the same search with its sides swapped: has a sample a query within the radius?
            close = RunningMinimum.starting_at(len(block), self._sq_radius)
            every_query = torch.ones(len(self._queries), dtype=torch.bool)
            self._improve(close, samples, queries, every_query, 0, levels, any_will_do=True)
            admissible &= close.index < 0
        self.accepted += admissible.sum()
        minimum = self.minimum[self._searching]
        self._improve(minimum, searching, samples, admissible, offset, levels)
        self.minimum[self._searching] = minimum

    def _improve(
        self,
        minimum: RunningMinimum,
        rows: Operand,
        columns: Operand,
        admissible: Tensor,
        offset: int,
        levels: list[Level],
        any_will_do: bool = False,
    ) -> None:
        """Give each row its nearest admissible column where that is nearer than its minimum.

        Args:
            minimum: the rows' minimum. Changed.
            rows: one side of the product.
            columns: its other side.
            admissible: bool [columns].
            offset: the index of the first column.
            levels: the operands' precision and the finer ones after it.
            any_will_do: whether any column nearer than the minimum will do instead of the nearest.
        """
        if not len(rows.vectors) or not len(columns.vectors):
            return
        shift = columns.as_columns(admissible)
        rows.as_rows()
        step = ROWS if len(levels) > 1 else max(1, 2**19 // len(columns.matrix))
        for part in (slice(start, start + step) for start in range(0, len(rows.vectors), step)):
            part_minimum = minimum[part]
            crowded = self._propose(part_minimum, rows[part], columns, shift, offset, any_will_do)
            if len(crowded):
                crowded_minimum = part_minimum[crowded]
                if len(levels) > 1:
                    both = rows.vectors[part][crowded], columns.vectors
                    finer = [Operand.of(v, levels[1], self._centre) for v in both]
                    self._improve(crowded_minimum, finer[0], finer[1], admissible, offset, levels[1:], any_will_do)
                else:
                    self._settle(crowded_minimum, rows[part][crowded], columns, shift, admissible, offset)
                part_minimum[crowded] = crowded_minimum
            minimum[part] = part_minimum

    def _propose(
        self, minimum: RunningMinimum, rows: Operand, columns: Operand, shift: float, offset: int, any_will_do: bool
    ) -> Tensor:
        """Measure the columns that may be nearer: the best of each row first, then all others that are still possible.

        Returns:
            The rows with too many of these to measure them, int64.
        """
        product, group_max = self._product(rows, columns)
        groups = group_max.shape[1]
        row = (group_max.amax(1) >= self._threshold(minimum.sq_distance, rows, shift)).nonzero()[:, 0]
        group = group_max[row].argmax(1)
        member = product[row, :, group].argmax(1)
        column = member * groups + group
        minimum.update(row, column + offset, sq_distances(rows.vectors, columns.vectors, row, column))
        product[row, member, group] = -torch.inf
        if any_will_do:
            row = row[minimum.index[row] < 0]
        threshold = self._threshold(minimum.sq_distance, rows, shift)
        possible = group_max[row] >= threshold[row, None]
        crowded = possible.sum(1) > MOST_CANDIDATE_GROUPS
        k, group = (possible & ~crowded[:, None]).nonzero().unbind(1)
        pair, member = (product[row[k], :, group] >= threshold[row[k], None]).nonzero().unbind(1)
        i, column = row[k[pair]], member * groups + group[pair]
        minimum.update(i, column + offset, sq_distances(rows.vectors, columns.vectors, i, column))
        return row[crowded]

    def _settle(
        self, minimum: RunningMinimum, rows: Operand, columns: Operand, shift: float, admissible: Tensor, offset: int
    ) -> None:
        """Decide rows that have many candidates even in float64.

        These are ties, of which only the lowest index is measured, or rows that nearly coincide with many columns, all
        of which are measured.
        """
        product = self._product(rows, columns)[0].flatten(1)[:, : len(columns.vectors)]
        largest = rows.half_bound + float(columns.half_bound[admissible].max())
        # Where float64's rounding of the product is larger than that of a distance, products cannot tell ties.
        blurred = 1e-13 * (rows.vectors.shape[1] + 16) * largest > minimum.sq_distance * 2.0**-22
        row = (~blurred).nonzero()[:, 0]
        tied = product >= self._threshold(minimum.sq_distance * (1 + 2.0**-22), rows, shift)[:, None]
        column = tied[row].byte().argmax(1)
        row, column = torch.cat([torch.stack([row, column], 1), (tied & blurred[:, None]).nonzero()]).unbind(1)
        minimum.update(row, column + offset, sq_distances(rows.vectors, columns.vectors, row, column))

    def _threshold(self, sq_distance: Tensor, rows: Operand, shift: float) -> Tensor:
        """A lower bound of the products of all pairs at most sq_distance apart.

        It is finite, so that columns masked by -inf never reach it.
        """
        level = rows.level
        threshold = (rows.half_bound - sq_distance / 2 + shift).to(level.centred_dtype).to(level.dtype)
        return threshold.clamp(min=torch.finfo(threshold.dtype).min)

    def _product(self, rows: Operand, columns: Operand) -> tuple[Tensor, Tensor]:
        """The products, [rows, GROUP, groups], and the maximum of each group, [rows, groups].

        The members of a group lie far apart in memory, which reduces fastest. For few rows the product is transposed.
        """
        dtype, few = rows.level.dtype, len(rows.matrix) <= FEW_ROWS
        left, right = (columns.matrix, rows.matrix) if few else (rows.matrix, columns.matrix)
        product = SCRATCH.take("product", len(left), len(right), dtype)
        torch.mm(left, right.T, out=product)
        if few:
            grouped = rearrange(product, "(member group) row -> member group row", member=GROUP)
            group_max = rearrange(grouped.amax(0), "group row -> row group").contiguous()
            return rearrange(grouped, "member group row -> row member group"), group_max
        grouped = rearrange(product, "row (member group) -> row member group", member=GROUP)
        return grouped, grouped.amax(1)


def count_within(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
    """How many samples lie within their radius of each query, int64 [n].

    Args:
        queries: floating-point [n, d], finite.
        samples: the same type [m, d].
        sq_radius: float64 [m], the greatest squared distance to each sample; negative: none.
    """
    return pairs_within(queries, samples, sq_radius)[:, 0].bincount(minlength=len(queries))


def pairs_within(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
    """The pairs (query, sample) that lie within the sample's radius, int64 [p, 2], in any order. See count_within."""
    i, j = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(samples))).unbind(1)
    near = (sq_distances(queries, samples, i, j) <= sq_radius[j]) & samples.isfinite().all(1)[j]
    return torch.stack([i[near], j[near]], 1)
