"""The nearest-neighbour search on a CPU: fast blocked products propose, differences decide.

A product of rounded vectors gives, for every pair, a number that the true squared distance cannot be below. Only pairs
whose number lies below the best distance known so far are measured, from differences. Where rounding leaves too many,
the next finer product thins them out first: bfloat16 (where the processor multiplies it), float32, float64.

The bound. Let x and y be centred, u the relative rounding of the operands and g that of one addition. In any order of
summation |fl(x . y) - x . y| <= (2 u + u^2 + (d + 4) g) |x| |y| (Higham, Accuracy and Stability, 3.1), and
2 |x| |y| <= |x|^2 + |y|^2. Hence, with k = 2 u + 2 u^2 + (3 d + 16) g, which covers the norms' and terms' rounding too,

    |x - y|^2 >= (1 - k) |x|^2 + (1 - k) |y|^2 - 2 fl(x . y),

a term for each vector and the product. The term of y rides along as two more columns, so that a plain matrix product
ranks the samples. Comparing rounded products needs no slack of its own: rounding keeps order.
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from imletriton.system.device import multiplies_bfloat16

ROWS = 4096  # rows of products held at once
BLOCK_VALUES = 2**23  # products held at once; of samples' values twice as many
PREPARED_VALUES = 2**18  # values centred at once: they should stay in the second-level cache
MEASURED_VALUES = 2**20  # differences held at once
FEW_ROWS = 1024  # up to here products are made the other way round
GROUP = 32  # products looked at together, by their greatest
CROWD = 16  # more proposals than this for one row: a finer product first
ORDINARY = 1e37  # vectors with half a squared norm above this only fit float64


class Level(NamedTuple):
    """A product: dtype of its rounded operands, dtype of the centred ones, unit roundoffs, underflow."""

    dtype: torch.dtype
    centred: torch.dtype
    operand_roundoff: float
    sum_roundoff: float
    tiny: float


BFLOAT16 = Level(torch.bfloat16, torch.float32, 2.0**-9 * (1 + 2.0**-14), 2.0**-24, 2.0**-125)
FLOAT32 = Level(torch.float32, torch.float32, 2.0**-24, 2.0**-24, 2.0**-125)
FLOAT64 = Level(torch.float64, torch.float64, 2.0**-53, 2.0**-53, 2.0**-1021)


class Scratch(threading.local):
    """Memory that is written anew for each block, and kept: fresh pages would cost more than the work on them."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns], holding anything; valid until the name is taken again."""
        held = self.held.get((name, dtype))
        if held is None or held.numel() < rows * columns:
            held = self.held[name, dtype] = torch.empty(rows * columns, dtype=dtype)
        return held[: rows * columns].view(rows, columns)


SCRATCH = Scratch()


@dataclass
class Operand:
    """Vectors [k, d] centred and rounded for a product, [k', d'], and halves of their bounds, float64 [k].

    Columns d and d + 1 of the matrix serve the bounds, the rest is 0: bfloat16 products on AMX read pairs and tiles of
    32, and what lies beyond the end of a row may be NaN. As columns of a product, k' is padded to whole groups.
    """

    vectors: Tensor
    level: Level
    matrix: Tensor
    half_bound: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Operand":
        """Some of them, without padding."""
        k = len(self.vectors)
        return Operand(self.vectors[rows], self.level, self.matrix[:k][rows], self.half_bound[rows])

    def as_rows(self) -> None:
        """Let the product take over the other side's terms."""
        d = self.vectors.shape[1]
        self.matrix[:, d : d + 2] = 1

    def as_columns(self, admissible: Tensor) -> float:
        """Put the bounds into the matrix, -inf where not admissible. Returns what the rows' terms must add.

        What the bounds have in common is left out, as it need not be rounded.
        """
        matrix, half_bound, level = self.matrix, self.half_bound, self.level
        (k, d), known = self.vectors.shape, half_bound[admissible]
        shift = float(known.mean()) if len(known) else 0.0
        term = (shift - half_bound).to(level.centred)
        matrix[:k, d] = term
        matrix[:k, d + 1] = term - matrix[:k, d].to(level.centred)
        if len(known) < k:
            matrix[(~admissible).nonzero()[:, 0]] = 0  # infinity would spoil the sums
            matrix[:k, d].masked_fill_(~admissible, -torch.inf)
        matrix[k:] = 0
        matrix[k:, d] = -torch.inf
        u, g = level.operand_roundoff, level.sum_roundoff
        return shift - (u * u + (d + 4) * g) * abs(shift)


@dataclass
class Running:
    """The least squared distances so far, float64 [k], and whose they are, int64 [k]."""

    best: Tensor
    index: Tensor

    @classmethod
    def starting_at(cls, k: int, sq_distance: float) -> "Running":
        return cls(torch.full((k,), sq_distance, dtype=torch.float64), torch.full((k,), -1))

    def __getitem__(self, rows: slice | Tensor) -> "Running":
        return Running(self.best[rows], self.index[rows])

    def __setitem__(self, rows: slice | Tensor, value: "Running") -> None:
        self.best[rows], self.index[rows] = value.best, value.index

    def take(self, rows: Tensor, index: Tensor, sq: Tensor) -> None:
        """Pairs of a row and an index, in any order. The lowest index wins ties; NaN and infinity never do."""
        sq = torch.where(sq.isfinite(), sq, torch.inf)
        least = torch.full_like(self.best, torch.inf).scatter_reduce_(0, rows, sq, "amin")
        none = torch.iinfo(torch.int64).max
        winner = torch.where((sq == least[rows]) & sq.isfinite(), index, none)
        lowest = torch.full_like(self.index, none).scatter_reduce_(0, rows, winner, "amin")
        better = (least < self.best) | ((least == self.best) & (lowest < self.index))
        self.best.copy_(torch.where(better, least, self.best))
        self.index.copy_(torch.where(better, lowest, self.index))


def sq_distances(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|x_i - y_j|^2, float64, from differences in float32 or better: each is one rounding, so it is good to 2^-23."""
    sq = torch.empty(len(i), dtype=torch.float64)
    wide = torch.promote_types(x.dtype, torch.float32)
    step = max(1, MEASURED_VALUES // max(1, x.shape[1]))
    for pairs in (slice(start, start + step) for start in range(0, len(i), step)):
        difference = x.index_select(0, i[pairs]).to(wide) - y.index_select(0, j[pairs]).to(wide)
        sq[pairs] = difference.double().square_().sum(1)
    return sq


class BlockedSearch:
    """The running minimum over chunks. NearestSearch checks the input and says what the results mean."""

    def __init__(self, queries: Tensor, searching: Tensor | None, reject_radius: float) -> None:
        n, d = queries.shape
        self.running = Running.starting_at(n, torch.inf)
        self.accepted = torch.zeros((), dtype=torch.int64)
        self._queries = queries
        self._searching: slice | Tensor = slice(None)
        if searching is not None:
            # Filled up to whole groups by repeats: oneDNN keeps most of a megabyte for each number of rows it has seen.
            rows = searching.nonzero()[:, 0]
            self._searching = torch.cat([rows, rows[-1:].expand(-len(rows) % GROUP)])
        self._sq_radius = reject_radius**2
        # Any centre serves, a good one makes the bounds tight; float32, so that subtracting it is one rounding.
        centre = queries.mean(0, dtype=torch.promote_types(queries.dtype, torch.float32)).float()
        spread = torch.linalg.vector_norm(queries[:1] - centre) if n else 0.0
        self._centre = centre if torch.linalg.vector_norm(centre) > spread / 8 else None  # else not worth the pass
        self._levels = (
            [BFLOAT16, FLOAT32, FLOAT64] if multiplies_bfloat16(queries.device) and d >= GROUP else [FLOAT32, FLOAT64]
        )
        self._rounded = self._operand(queries, self._levels[0])
        if not (self._rounded.half_bound < ORDINARY).all():
            self._levels = [FLOAT64]
            self._rounded = self._operand(queries, FLOAT64)
        self._rounded_searching = self._rounded[self._searching]

    @property
    def sq_distance(self) -> Tensor:
        """float64 [n]."""
        return self.running.best

    @property
    def index(self) -> Tensor:
        """int64 [n]."""
        return self.running.index

    def update(self, chunk: Tensor, offset: int) -> None:
        """Compare samples, [c, d]; the first has index offset."""
        n, d = self._queries.shape
        width = BLOCK_VALUES // max(min(n, ROWS), d // 2, GROUP)
        for block in chunk.tensor_split(-(-len(chunk) // width)) if len(chunk) else ():
            self._update_block(block, offset)
            offset += len(block)

    def _update_block(self, block: Tensor, offset: int) -> None:
        levels, queries, searching = self._levels, self._rounded, self._rounded_searching
        samples = self._operand(block, levels[0], "samples")
        admissible = samples.half_bound < ORDINARY  # false for NaN
        if not admissible.all():
            finite = block.isfinite().all(1)
            if (finite & ~admissible).any():
                levels = [FLOAT64]
                queries, samples = self._operand(self._queries, FLOAT64), self._operand(block, FLOAT64)
                searching = queries[self._searching]
            admissible = finite
        if self._sq_radius:  # the same search with sides swapped: has a sample a query within the radius?
            close = Running.starting_at(len(block), self._sq_radius)
            self._improve(close, samples, queries, torch.ones(len(self._queries), dtype=torch.bool), 0, levels, True)
            admissible &= close.index < 0
        self.accepted += admissible.sum()
        running = self.running[self._searching]
        self._improve(running, searching, samples, admissible, offset, levels)
        self.running[self._searching] = running

    def _improve(
        self,
        running: Running,
        rows: Operand,
        columns: Operand,
        admissible: Tensor,
        offset: int,
        levels: list[Level],
        any_will_do: bool = False,
    ) -> None:
        """Let each row take its nearest admissible column where that is nearer than what it has, or just any that is.

        levels: the operands' and the finer ones after it. Changes running.
        """
        if not len(rows.vectors) or not len(columns.vectors):
            return
        shift = columns.as_columns(admissible)
        rows.as_rows()
        step = ROWS if len(levels) > 1 else max(1, 2**19 // len(columns.matrix))
        for part in (slice(start, start + step) for start in range(0, len(rows.vectors), step)):
            mine = running[part]
            crowded = self._propose(mine, rows[part], columns, shift, offset, any_will_do)
            if len(crowded):
                theirs = mine[crowded]
                if len(levels) > 1:
                    finer = [self._operand(v, levels[1]) for v in (rows.vectors[part][crowded], columns.vectors)]
                    self._improve(theirs, finer[0], finer[1], admissible, offset, levels[1:], any_will_do)
                else:
                    self._settle(theirs, rows[part][crowded], columns, shift, admissible, offset)
                mine[crowded] = theirs
            running[part] = mine

    def _propose(
        self, running: Running, rows: Operand, columns: Operand, shift: float, offset: int, any_will_do: bool
    ) -> Tensor:
        """Measure the columns that may be nearer. Returns the rows that have too many of them, int64."""
        grouped, peak = self._product(rows, columns)
        hit = (peak.amax(1) >= self._threshold(running.best, rows, shift)).nonzero()[:, 0]
        group = peak[hit].argmax(1)
        place = grouped[hit, :, group].argmax(1)
        column = place * peak.shape[1] + group
        running.take(hit, column + offset, sq_distances(rows.vectors, columns.vectors, hit, column))
        grouped[hit, place, group] = -torch.inf
        if any_will_do:
            hit = hit[running.index[hit] < 0]
        threshold = self._threshold(running.best, rows, shift)
        close = peak[hit] >= threshold[hit, None]
        crowded = close.sum(1) > CROWD
        k, group = (close & ~crowded[:, None]).nonzero().unbind(1)
        member = grouped[hit[k], :, group] >= threshold[hit[k], None]
        pair, place = member.nonzero().unbind(1)
        row, column = hit[k[pair]], place * peak.shape[1] + group[pair]
        running.take(row, column + offset, sq_distances(rows.vectors, columns.vectors, row, column))
        return hit[crowded]

    def _settle(
        self, running: Running, rows: Operand, columns: Operand, shift: float, admissible: Tensor, offset: int
    ) -> None:
        """Decide rows with a crowd even in float64: ties, which the lowest index wins, or rows that nearly coincide."""
        product = self._product(rows, columns)[0].flatten(1)[:, : len(columns.vectors)]
        reach = rows.half_bound + float(columns.half_bound[admissible].max())
        blurred = 1e-13 * (rows.vectors.shape[1] + 16) * reach > running.best * 2.0**-22
        row = (~blurred).nonzero()[:, 0]
        tied = product >= self._threshold(running.best * (1 + 2.0**-22), rows, shift)[:, None]
        column = tied[row].byte().argmax(1)
        row, column = torch.cat([torch.stack([row, column], 1), (tied & blurred[:, None]).nonzero()]).unbind(1)
        running.take(row, column + offset, sq_distances(rows.vectors, columns.vectors, row, column))

    def _threshold(self, sq_distance: Tensor, rows: Operand, shift: float) -> Tensor:
        """What the products of pairs at most sq_distance apart are not below. Above -inf, which marks the masked."""
        threshold = (rows.half_bound - sq_distance / 2 + shift).to(rows.level.centred).to(rows.level.dtype)
        return threshold.clamp(min=torch.finfo(threshold.dtype).min)

    def _product(self, rows: Operand, columns: Operand) -> tuple[Tensor, Tensor]:
        """Products [rows, GROUP, groups] and the greatest of each group, [rows, groups].

        A group's members lie far apart, which reduces fastest. Of few rows it is made the other way round.
        """
        dtype, few = rows.level.dtype, len(rows.matrix) <= FEW_ROWS
        left, right = (columns.matrix, rows.matrix) if few else (rows.matrix, columns.matrix)
        product = SCRATCH.take("product", len(left), len(right), dtype)
        torch.mm(left, right.T, out=product)
        if few:
            grouped = rearrange(product, "(member group) row -> member group row", member=GROUP)
            greatest = rearrange(grouped.amax(0), "group row -> row group").contiguous()
            return rearrange(grouped, "member group row -> row member group"), greatest
        grouped = rearrange(product, "row (member group) -> row member group", member=GROUP)
        return grouped, grouped.amax(1)

    def _operand(self, vectors: Tensor, level: Level, scratch: str = "") -> Operand:
        """Centred, rounded and bounded; in memory of its own unless scratch names some. Not finite: so is the bound."""
        k, d = vectors.shape
        # Rows start on cache lines, an odd number of them apart: even ones collide in the caches.
        width = -(-(d + 2) // 32) * 32 if d >= GROUP else d + 2
        shape = -(-k // GROUP) * GROUP, width + 32 if width % 64 == 0 else width
        matrix = SCRATCH.take(scratch, *shape, level.dtype) if scratch else torch.empty(shape, dtype=level.dtype)
        norm = torch.empty(k, dtype=level.centred)
        step = max(16, PREPARED_VALUES // max(1, d))
        for rows in (slice(start, min(k, start + step)) for start in range(0, k, step)):
            centred = vectors[rows].to(level.centred)
            if self._centre is not None:
                held = SCRATCH.take("centred", len(centred), d, level.centred)
                centred = torch.sub(centred, self._centre, out=held)
            torch.linalg.vector_norm(centred, dim=1, out=norm[rows])
            matrix[rows, :d] = centred
        matrix[:, d + 2 :] = 0
        u, g = level.operand_roundoff, level.sum_roundoff
        shrink = 0.5 * (1 - 2 * u - 2 * u * u - (3 * d + 16) * g)
        return Operand(vectors, level, matrix[:, :width], norm.double().square() * shrink - 2 * d * level.tiny)
