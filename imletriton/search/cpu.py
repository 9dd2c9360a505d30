"""The nearest-neighbour search on a CPU: fast blocked products propose candidates, differences decide.

A product of rounded vectors gives, for every pair, a lower bound of the squared distance (see bounds.py). Only pairs
whose bound is not above the k-th least distance known so far are measured, from differences. Where rounding leaves too
many of them, the next finer product is computed first: bfloat16 (where the processor multiplies it), float32, float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imletriton.search.bounds import BLOCK_VALUES, GROUP, ROWS, Level, Operand, QuerySide, multiply

LAST_VALUES = 2**19  # products held at once in float64, where all may have to be measured
MEASURED_VALUES = 2**20  # differences held at once
MOST_CANDIDATE_GROUPS = 15  # a row with candidates in more groups than this and k gets a finer product first


@dataclass
class RunningMinimum:
    """The k least squared distances of each row so far, float64 [n, k], and the indices of their samples, int64 [n, k].

    They are sorted by distance, then by index; inf and -1 stand for none. No index is twice in a row.
    """

    sq_distance: Tensor
    index: Tensor

    @classmethod
    def starting_at(cls, n: int, k: int, sq_distance: float) -> "RunningMinimum":
        """No sample yet: only those nearer than sq_distance will count."""
        return cls(torch.full((n, k), sq_distance, dtype=torch.float64), torch.full((n, k), -1))

    @property
    def worst(self) -> Tensor:
        """The k-th least squared distances, float64 [n]: a sample that is farther does not matter."""
        return self.sq_distance[:, -1]

    def __getitem__(self, rows: slice | Tensor) -> "RunningMinimum":
        return RunningMinimum(self.sq_distance[rows], self.index[rows])

    def __setitem__(self, rows: slice | Tensor | tuple[Tensor, Tensor], value: "RunningMinimum") -> None:
        self.sq_distance[rows], self.index[rows] = value.sq_distance, value.index

    def update(self, rows: Tensor, index: Tensor, sq_distance: Tensor) -> None:
        """Take measured pairs into account: the lowest index wins ties, and NaN and infinity never win.

        Args:
            rows: int64 [r], distinct.
            index: int64 [r, c], indices of samples, which may have been measured before.
            sq_distance: float64 [r, c], their squared distances from the rows; inf for a place without a pair.
        """
        k = self.index.shape[1]
        lines = RunningMinimum(
            torch.cat([self.sq_distance[rows], sq_distance.nan_to_num_(torch.inf, torch.inf)], 1),
            torch.cat([self.index[rows], index], 1),
        )
        lines._sort_by(lines.index)
        if k > 1:  # a sample that was measured again must not take two places
            repeated = lines.index[:, 1:] == lines.index[:, :-1]
            lines.sq_distance[:, 1:].masked_fill_(repeated, torch.inf)
        lines._sort_by(lines.sq_distance)
        lines.index.masked_fill_(lines.sq_distance.isinf(), -1)
        self[rows] = RunningMinimum(lines.sq_distance[:, :k], lines.index[:, :k])

    def _sort_by(self, key: Tensor) -> None:
        order = key.argsort(dim=1, stable=True)
        self.sq_distance, self.index = self.sq_distance.gather(1, order), self.index.gather(1, order)


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


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row, or all where there are fewer, and their places."""
    return values.max(1, keepdim=True) if k == 1 else values.topk(min(k, values.shape[1]))  # topk(1) is slower


class BlockedSearch:
    """The running minimum over chunks on a CPU. NearestSearch checks the input and documents the results.

    Args:
        queries: floating-point [n, d], finite.
        searching: bool [n], the queries that want a neighbour; None for all.
        reject_radius: samples closer than this (not squared) to any query are left out; 0 for none.
        k: how many neighbours each query gets.
    """

    def __init__(self, queries: Tensor, searching: Tensor | None, reject_radius: float, k: int = 1) -> None:
        self.minimum = RunningMinimum.starting_at(len(queries), k, torch.inf)
        self.accepted = torch.zeros((), dtype=torch.int64)
        self._queries = QuerySide(queries)
        self._searching: slice | Tensor = slice(None)
        if searching is not None:
            # Padded to whole groups by repeats: oneDNN keeps most of a megabyte for each number of rows it has seen.
            rows = searching.nonzero()[:, 0]
            self._searching = torch.cat([rows, rows[-1:].expand(-len(rows) % GROUP)])
        self._searching_operand = self._queries.operand[self._searching]
        self._sq_radius = reject_radius * reject_radius

    @property
    def sq_distance(self) -> Tensor:
        """The k least squared distances so far, float64 [n, k]; inf: none."""
        return self.minimum.sq_distance

    @property
    def index(self) -> Tensor:
        """The indices of the samples that have them, int64 [n, k]; -1: none."""
        return self.minimum.index

    def update(self, chunk: Tensor, offset: int) -> None:
        """Compare the queries with more samples.

        Args:
            chunk: the samples, [c, d], of the queries' dtype and device.
            offset: the index of the first of them.
        """
        for block in self._queries.blocks(chunk):
            self._update_block(block, offset)
            offset += len(block)

    def _update_block(self, block: Tensor, offset: int) -> None:
        levels, queries, samples, admissible = self._queries.against(block)
        if self._sq_radius:  # the same search with its sides swapped: has a sample a query within the radius?
            close = RunningMinimum.starting_at(len(block), 1, self._sq_radius)
            every_query = torch.ones(len(queries.vectors), dtype=torch.bool)
            self._improve(close, samples, queries, every_query, 0, levels, any_will_do=True)
            admissible &= close.index[:, 0] < 0
        self.accepted += admissible.sum()
        minimum = self.minimum[self._searching]
        searching = self._searching_operand if queries is self._queries.operand else queries[self._searching]
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
        """Give each row its k nearest admissible columns where these are nearer than its minimum.

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
        shift, _ = columns.as_columns(admissible)
        rows.as_rows()
        k = minimum.index.shape[1]
        at_most = ROWS * (MOST_CANDIDATE_GROUPS + 1) // (MOST_CANDIDATE_GROUPS + k)  # `_propose` gathers k groups a row
        step = max(1, min(at_most, (BLOCK_VALUES if len(levels) > 1 else LAST_VALUES) // len(columns.matrix)))
        for part in (slice(start, start + step) for start in range(0, len(rows.vectors), step)):
            part_minimum = minimum[part]
            crowded = self._propose(part_minimum, rows[part], columns, shift, offset, any_will_do)
            if len(crowded):
                crowded_minimum = part_minimum[crowded]
                if len(levels) > 1:
                    both = rows.vectors[part][crowded], columns.vectors
                    finer = [Operand.of(v, levels[1], self._queries.centre) for v in both]
                    self._improve(crowded_minimum, finer[0], finer[1], admissible, offset, levels[1:], any_will_do)
                else:
                    self._settle(crowded_minimum, rows[part][crowded], columns, shift, admissible, offset)
                part_minimum[crowded] = crowded_minimum
            minimum[part] = part_minimum

    def _propose(
        self, minimum: RunningMinimum, rows: Operand, columns: Operand, shift: float, offset: int, any_will_do: bool
    ) -> Tensor:
        """Measure the columns that may be nearer: the k best of each row first, then all that are still possible.

        Returns:
            The rows with too many of these to measure them, int64.
        """
        product, group_max = multiply(rows, columns)
        k, groups = minimum.index.shape[1], group_max.shape[1]
        threshold = self._threshold(minimum.worst, rows, shift)
        row = (group_max.amax(1) >= threshold).nonzero()[:, 0]
        # The k best columns are in the k groups whose best is best.
        group = _largest(group_max[row], k)[1]
        best, place = _largest(product[row[:, None], :, group].flatten(1), k)
        group, member = group.gather(1, place // GROUP), place % GROUP
        product[row[:, None], member, group] = -torch.inf
        column, sq_distance = member * groups + group, torch.full(best.shape, torch.inf, dtype=torch.float64)
        i, place = (best >= threshold[row, None]).nonzero().unbind(1)
        sq_distance[i, place] = sq_distances(rows.vectors, columns.vectors, row[i], column[i, place])
        minimum.update(row, column + offset, sq_distance)
        if any_will_do:
            row = row[minimum.index[row, 0] < 0]
        threshold = self._threshold(minimum.worst, rows, shift)
        possible = group_max[row] >= threshold[row, None]
        crowded = possible.sum(1) > MOST_CANDIDATE_GROUPS + k
        i, group = (possible & ~crowded[:, None]).nonzero().unbind(1)
        pair, member = (product[row[i], :, group] >= threshold[row[i], None]).nonzero().unbind(1)
        self._measure(minimum, rows, columns, row[i[pair]], member * groups + group[pair], offset)
        return row[crowded]

    def _settle(
        self, minimum: RunningMinimum, rows: Operand, columns: Operand, shift: float, admissible: Tensor, offset: int
    ) -> None:
        """Decide rows that have many candidates even in float64, and whose k best by that product have been measured.

        The others are ties with the k-th, of which only the k lowest indices are measured, or rows that nearly coincide
        with many columns, all of which are measured.
        """
        product = multiply(rows, columns)[0].flatten(1)[:, : len(columns.vectors)]
        largest = rows.half_bound + float(columns.half_bound[admissible].max())
        # Where float64's rounding of the product is larger than that of a distance, products cannot tell ties.
        blurred = 1e-13 * (rows.vectors.shape[1] + 16) * largest > minimum.worst * 2.0**-22
        tied = product >= self._threshold(minimum.worst * (1 + 2.0**-22), rows, shift)[:, None]
        row, column = (tied & (blurred[:, None] | (tied.cumsum(1) <= minimum.index.shape[1]))).nonzero().unbind(1)
        self._measure(minimum, rows, columns, row, column, offset)

    def _measure(
        self, minimum: RunningMinimum, rows: Operand, columns: Operand, row: Tensor, column: Tensor, offset: int
    ) -> None:
        """Measure pairs, int64 [pairs] each, the rows ascending, and update the minimum."""
        sq_distance = sq_distances(rows.vectors, columns.vectors, row, column)
        nearer = (sq_distance <= minimum.worst[row]).nonzero()[:, 0]
        if len(nearer):
            distinct, line, count = row[nearer].unique_consecutive(return_inverse=True, return_counts=True)
            place = torch.arange(len(nearer)) - (count.cumsum(0) - count)[line]
            pairs = RunningMinimum.starting_at(len(distinct), int(count.max()), torch.inf)
            pairs[line, place] = RunningMinimum(sq_distance[nearer], column[nearer] + offset)
            minimum.update(distinct, pairs.index, pairs.sq_distance)

    def _threshold(self, sq_distance: Tensor, rows: Operand, shift: float) -> Tensor:
        """A lower bound of the products of all pairs at most sq_distance apart.

        It is finite, so that columns masked by -inf never reach it.
        """
        return rows.rounded(rows.half_bound - sq_distance / 2 + shift)
