"""All pairs within a radius on a CPU: the bounds of fast products decide most pairs, differences decide the others."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imletriton.search.bounds import ROWS, Level, Operand, QuerySide, multiply
from imletriton.search.cpu import LAST_VALUES, sq_distances

MEASURED_ROUNDOFF = 2.0**-22  # relative rounding of sq_distances, within which products must not decide
UNSURE_SHARE = 64  # a row in doubt about more than one in so many columns gets a finer product first


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
    """How many samples lie within their radius of each query, int64 [n].

    Args:
        queries: floating-point [n, d], finite.
        samples: the same type [m, d]. One that is not finite is near no query.
        sq_radius: float64 [m], the greatest squared distance to each sample; negative: none.
    """
    count = torch.zeros(len(queries), dtype=torch.int64)
    for groups in _search(queries, samples, sq_radius):
        count.index_add_(0, groups.row, groups.near.sum(1))
    return count


def pairs_within(queries: Tensor, samples: Tensor, sq_radius: Tensor) -> Tensor:
    """The pairs (query, sample) that lie within the sample's radius, int64 [p, 2], in any order; see count_within."""
    pairs = [torch.zeros(0, 2, dtype=torch.int64)]
    for row, near, first, stride in _search(queries, samples, sq_radius):
        group, member = near.nonzero().unbind(1)
        pairs.append(torch.stack([row[group], first[group] + stride * member], 1))
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
