"""The search on a CPU: fast blocked products bound all distances, and differences decide where the bounds do not.

A product of rounded vectors bounds the squared distance of every pair (see bounds.py). For the nearest samples, only
pairs whose lower bound is not above the k-th least distance known so far are measured, from differences; for the pairs
within a radius, only those whose bounds lie on either side of it. Where rounding leaves too many of them, the next
finer product is computed first: bfloat16 (where the processor multiplies it), float32, float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.search.backends import check_unchanged
from imletriton.search.bounds import (
    BLOCK_VALUES,
    GROUP,
    MEASURED_ROUNDOFF,
    ROWS,
    Level,
    Operand,
    QuerySide,
    multiply,
    sq_distances,
)
from imletriton.search.prepared import Prepared

CHECKED = 1024  # queries that are checked at once, which takes more memory than they do
LAST_VALUES = 2**19  # products held at once in float64, where all may have to be measured
MOST_CANDIDATE_GROUPS = 15  # a row with candidates in more groups than this and k gets a finer product first
UNSURE_SHARE = 64  # a row in doubt about more than one in so many columns gets a finer product first


def check_queries(queries: Tensor) -> None:
    """Raise a ValueError unless all queries are finite, and so short that their squares are finite too."""
    if not all(part.isfinite().all() for part in queries.split(CHECKED)):
        raise ValueError("queries must be finite, but some hold NaN or infinity")
    if queries.dtype == torch.float64 and not torch.linalg.vector_norm(queries, dim=1).square().isfinite().all():
        raise ValueError("queries must be shorter than 1e154, since their squares must fit float64")


def prepare(vectors: Tensor, reference: None) -> None:
    """Do nothing: on a CPU, each search rounds its vectors block by block, in memory that it uses again."""


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


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row, or all where there are fewer, and their places."""
    return values.max(1, keepdim=True) if k == 1 else values.topk(min(k, values.shape[1]))  # topk(1) is slower


class CPUSearch:
    """The running minimum over chunks: see Backend.start_search, and NearestSearch for the results."""

    def __init__(self, queries: Prepared, searching: Tensor | None, reject_radius: float, k: int) -> None:
        self.minimum = RunningMinimum.starting_at(len(queries), k, torch.inf)
        self.sq_distance, self.index = self.minimum.sq_distance, self.minimum.index  # updated in place
        self.accepted = torch.zeros((), dtype=torch.int64)
        self._queries = QuerySide(queries.vectors)
        self._searching: slice | Tensor = slice(None)
        if searching is not None:
            # Padded to whole groups by repeats: oneDNN keeps most of a megabyte for each number of rows it has seen.
            rows = searching.nonzero()[:, 0]
            self._searching = torch.cat([rows, rows[-1:].expand(-len(rows) % GROUP)])
        self._searching_operand = self._queries.operand[self._searching]
        self._sq_radius = reject_radius * reject_radius

    def update(self, samples: Prepared, offset: int) -> None:
        """Compare the queries with more samples, [c, d]; offset is the index of the first one."""
        for block in self._queries.blocks(samples.vectors):
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


start_search = CPUSearch


class Groups(NamedTuple):
    """Groups of columns that have some column within its radius of a row, g of them.

    row is int64 [g], and near, bool [g, GROUP], tells which members are within. Their columns are first, int64 [g], and
    every stride-th from there.
    """

    row: Tensor
    near: Tensor
    first: Tensor
    stride: int


def count_within(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
    """Count the samples within their radius of each query; see Backend."""
    count = torch.zeros(len(queries), dtype=torch.int64)
    for groups in _search(queries, samples, sq_radius):
        count.index_add_(0, groups.row, groups.near.sum(1))
    return count


def pairs_within(queries: Tensor, samples: Tensor, sq_radius: Tensor, number: int) -> Tensor:
    """List the pairs of a query and a sample within its radius; see Backend."""
    pairs = [torch.zeros(0, 2, dtype=torch.int64)]
    for row, near, first, stride in _search(queries, samples, sq_radius):
        group, member = near.nonzero().unbind(1)
        pairs.append(torch.stack([row[group], first[group] + stride * member], 1))
    check_unchanged(sum(map(len, pairs)), number)
    return torch.cat(pairs)


def _search(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Iterator[Groups]:
    """All groups of samples with some sample within its radius of a query; see count_within."""
    side, offset = QuerySide(queries), 0
    for block in side.blocks(samples):
        levels, rows, columns, finite = side.against(block)
        limit = sq_radius[offset : offset + len(block)]
        for groups in _decide(rows, columns, limit, finite & (limit >= 0), levels, side.centre):
            yield groups._replace(first=groups.first + offset)
        offset += len(block)


def _decide(
    rows: Operand, columns: Operand, sq_radius: Tensor, admissible: Tensor, levels: list[Level], centre: Tensor | None
) -> Iterator[Groups]:
    """All groups of columns with some admissible column within its radius of a row.

    Args:
        rows: one side of the product.
        columns: its other side.
        sq_radius: float64 [columns].
        admissible: bool [columns].
        levels: the operands' precision and the finer ones after it.
        centre: what the operands were centred by.
    """
    if not len(rows.vectors) or not admissible.any():
        return
    # No pair is farther apart than twice the longest vectors, and a larger radius would only cost the bounds precision.
    half_sq_norms = rows.half_bound + rows.half_error, (columns.half_bound + columns.half_error)[admissible]
    farthest = 4.2 * sum(float(half_sq_norm.max()) for half_sq_norm in half_sq_norms) + 1e-30
    half_sq_radius = sq_radius.clamp(max=farthest) * (0.5 + 0.5 * MEASURED_ROUNDOFF)
    low, high = columns.as_columns(admissible, half_sq_radius)
    rows.as_rows()
    lower = rows.rounded(rows.half_bound + low)  # below it, a product's pair is surely farther apart than the radius
    high += 2 * float((columns.half_error + MEASURED_ROUNDOFF * half_sq_radius)[admissible].max())
    upper = rows.rounded(rows.half_bound + 2 * rows.half_error + high)  # above it, surely within
    step = ROWS if len(levels) > 1 else max(1, LAST_VALUES // len(columns.matrix))
    for start in range(0, len(rows.vectors), step):
        part = slice(start, start + step)
        product, group_max = multiply(rows[part], columns)
        row, first = (group_max >= lower[part, None]).nonzero().unbind(1)
        values, stride = product[row, :, first], group_max.shape[1]
        near = values > upper[part][row, None]
        unsure = (values >= lower[part][row, None]) & ~near
        if len(levels) > 1:
            doubts = torch.zeros(len(group_max), dtype=torch.int64).index_add_(0, row, unsure.sum(1))
            crowded = doubts * UNSURE_SHARE > len(columns.vectors)
            if crowded.any():
                again = start + crowded.nonzero()[:, 0]
                finer = [Operand.of(v, levels[1], centre) for v in (rows.vectors[again], columns.vectors)]
                for groups in _decide(finer[0], finer[1], sq_radius, admissible, levels[1:], centre):
                    yield groups._replace(row=again[groups.row])
                certain = ~crowded[row]
                row, first, near, unsure = row[certain], first[certain], near[certain], unsure[certain]
        group, member = unsure.nonzero().unbind(1)
        i, j = start + row[group], first[group] + stride * member
        near[group, member] = sq_distances(rows.vectors, columns.vectors, i, j) <= sq_radius[j]
        yield Groups(start + row, near, first, stride)
