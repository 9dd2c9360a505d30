"""The operands of the CPU search's products: vectors centred and rounded, each with a bound on what rounding loses.

The bound. Let x and y be centred, u the relative rounding of the operands and g that of one addition. In any order of
summation |fl(x . y) - x . y| <= (2 u + u^2 + (d + 4) g) |x| |y| (Higham, Accuracy and Stability, 3.1), and
2 |x| |y| <= |x|^2 + |y|^2. Hence, with e = 2 u + 2 u^2 + (3 d + 16) g, which also covers the rounding of the norms and
of the terms,

    |x - y|^2 >= (1 - e) |x|^2 + (1 - e) |y|^2 - 2 fl(x . y),

a term for each vector and the product. The term of y is stored in two more columns of its operand, so that a plain
matmul ranks the samples. Comparing rounded products needs no further margin, since rounding keeps the order. In the
same way |x - y|^2 <= (1 + e) |x|^2 + (1 + e) |y|^2 - 2 fl(x . y).
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from imletriton.system.device import multiplies_bfloat16

GROUP = 32  # products compared at once, by their maximum
PREPARED_VALUES = 2**18  # values centred at once, so that they stay in the second-level cache
ROWS = 4096  # rows of products held at once
BLOCK_VALUES = 2**23  # products held at once; of samples' values twice as many
FEW_ROWS = 1024  # for so many rows at most, or fewer columns than FEW_COLUMNS, the product is computed transposed
FEW_COLUMNS = 64 * GROUP  # with fewer, the maximum of each group would take ten times as long
MEASURED_VALUES = 2**20  # differences held at once
MEASURED_ROUNDOFF = 2.0**-22  # relative rounding of sq_distances, within which products must not decide
LARGEST_HALF_BOUND = 1e37  # vectors whose half squared norm is above this fit float64 only


class Level(NamedTuple):
    """The precision of a product.

    dtype is that of the rounded operands, centred_dtype that of the vectors before rounding; operand_roundoff and
    sum_roundoff are u and g of the bound; underflow is what a rounded value may lose besides.
    """

    dtype: torch.dtype
    centred_dtype: torch.dtype
    operand_roundoff: float
    sum_roundoff: float
    underflow: float


BFLOAT16 = Level(torch.bfloat16, torch.float32, 2.0**-8 * (1 + 2.0**-14), 2.0**-24, 2.0**-125)
FLOAT32 = Level(torch.float32, torch.float32, 2.0**-24, 2.0**-24, 2.0**-125)
FLOAT64 = Level(torch.float64, torch.float64, 2.0**-53, 2.0**-53, 2.0**-1021)


class Scratch(threading.local):
    """Memory that is kept and written anew for each block: fresh pages would cost more than the work on them."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A tensor [rows, columns] of any content. It is valid until the name is taken again."""
        held = self.held.get((name, dtype))
        if held is None or held.numel() < rows * columns:
            held = self.held[name, dtype] = torch.empty(rows * columns, dtype=dtype)
        return held[: rows * columns].view(rows, columns)


SCRATCH = Scratch()


@dataclass
class Operand:
    """Vectors [k, d] as one side of a product: the rounded matrix [k', d'] and half of each bound, float64 [k].

    half_bound is (1 - e) |x|^2 / 2, and half_error, float64 [k], is e |x|^2 / 2, both with a margin for underflow.

    Columns d and d + 1 of the matrix hold the bounds, the rest is 0: bfloat16 products on AMX read pairs and tiles of
    32, and what lies beyond the end of a row may be NaN. k' is k padded to whole groups, for the columns of a product.
    """

    vectors: Tensor
    level: Level
    matrix: Tensor
    half_bound: Tensor
    half_error: Tensor

    @classmethod
    def of(cls, vectors: Tensor, level: Level, centre: Tensor | None, scratch: str = "") -> "Operand":
        """Centre and round vectors and compute their bounds.

        Args:
            vectors: floating-point [k, d]. Where one is not finite, neither is its bound.
            level: the precision to round to.
            centre: [d], what is subtracted from each vector; None for nothing.
            scratch: the name of the scratch memory to use; without one, the operand gets memory of its own.
        """
        k, d = vectors.shape
        # Rows start on cache lines, an odd number of them apart, since rows an even number apart collide in the caches.
        width = -(-(d + 2) // 32) * 32 if d >= GROUP else d + 2
        shape = -(-k // GROUP) * GROUP, width + 32 if width % 64 == 0 else width
        matrix = SCRATCH.take(scratch, *shape, level.dtype) if scratch else torch.empty(shape, dtype=level.dtype)
        norm = torch.empty(k, dtype=level.centred_dtype)
        wide = torch.promote_types(vectors.dtype, level.centred_dtype)  # rounding first would cost far from the origin
        step = max(16, PREPARED_VALUES // max(1, d))
        for rows in (slice(start, min(k, start + step)) for start in range(0, k, step)):
            centred = vectors[rows].to(wide)
            if centre is not None:
                centred = torch.sub(centred, centre, out=SCRATCH.take("centred", len(centred), d, wide))
            centred = centred.to(level.centred_dtype)
            torch.linalg.vector_norm(centred, dim=1, out=norm[rows])
            matrix[rows, :d] = centred
        matrix[:, d + 2 :] = 0
        u, g = level.operand_roundoff, level.sum_roundoff
        half_sq_norm = norm.double().square() / 2
        half_error = half_sq_norm * (2 * u + 2 * u * u + (3 * d + 16) * g) + 2 * d * level.underflow
        return cls(vectors, level, matrix[:, :width], half_sq_norm - half_error, half_error)

    def __getitem__(self, rows: slice | Tensor) -> "Operand":
        """Some of the vectors, without padding."""
        k = len(self.vectors)
        bounds = self.half_bound[rows], self.half_error[rows]
        return Operand(self.vectors[rows], self.level, self.matrix[:k][rows], *bounds)

    def rounded(self, threshold: Tensor) -> Tensor:
        """Thresholds for products, float64, rounded as the products are, and finite so that -inf never reaches them."""
        level = self.level
        rounded = threshold.to(level.centred_dtype).to(level.dtype)
        return rounded.clamp(min=torch.finfo(level.dtype).min)

    def as_rows(self) -> None:
        """Make the product add the bounds of the other side, whose columns d and d + 1 are multiplied by 1."""
        d = self.vectors.shape[1]
        self.matrix[:, d : d + 2] = 1

    def as_columns(self, admissible: Tensor, half_sq_radius: Tensor | None = None) -> tuple[float, float]:
        """Store the bounds in the matrix, and -inf for the vectors that are not admissible (bool [k]).

        The mean of the bounds is left out, so that it need not be rounded.

        Args:
            admissible: bool [k].
            half_sq_radius: float64 [k], what is subtracted from each bound; None for nothing.

        Returns:
            What must be added to the rows' bounds instead, less and plus what the rounding of the bounds may cost.
        """
        matrix, level = self.matrix, self.level
        (k, d), u, g = self.vectors.shape, level.operand_roundoff, level.sum_roundoff
        roundoff = u * u + (d + 4) * g
        bound = self.half_bound if half_sq_radius is None else self.half_bound - half_sq_radius
        admissible_bounds = bound[admissible]
        shift = float(admissible_bounds.mean()) if len(admissible_bounds) else 0.0
        term = (shift - bound).to(level.centred_dtype)
        matrix[:k, d] = term
        matrix[:k, d + 1] = term - matrix[:k, d].to(level.centred_dtype)
        if len(admissible_bounds) < k:
            matrix[(~admissible).nonzero()[:, 0]] = 0  # infinity would spoil the sums
            matrix[:k, d].masked_fill_(~admissible, -torch.inf)
        matrix[k:] = 0
        matrix[k:, d] = -torch.inf
        cost = roundoff * abs(shift)
        if half_sq_radius is not None and len(admissible_bounds):
            cost += roundoff * float(half_sq_radius[admissible].max())
        return shift - cost, shift + cost


def multiply(rows: Operand, columns: Operand) -> tuple[Tensor, Tensor]:
    """The products, [rows, GROUP, groups], and the maximum of each group, [rows, groups].

    The members of a group lie far apart in memory, which reduces fastest. The products are valid until the next ones
    are computed.
    """
    transposed = len(rows.matrix) <= FEW_ROWS or len(columns.matrix) < FEW_COLUMNS
    left, right = (columns.matrix, rows.matrix) if transposed else (rows.matrix, columns.matrix)
    product = SCRATCH.take("product", len(left), len(right), rows.level.dtype)
    torch.mm(left, right.T, out=product)
    if transposed:
        grouped = rearrange(product, "(member group) row -> member group row", member=GROUP)
        group_max = rearrange(grouped.amax(0), "group row -> row group").contiguous()
        return rearrange(grouped, "member group row -> row member group"), group_max
    grouped = rearrange(product, "row (member group) -> row member group", member=GROUP)
    return grouped, grouped.amax(1)


class QuerySide:
    """The queries as one side of the products with all blocks of samples.

    Args:
        queries: floating-point [n, d], finite.

    Attributes:
        centre: float32 [d], what is subtracted from all vectors; None for nothing.
        levels: the precisions of the products, the coarsest first.
        operand: the queries at the first level.
    """

    def __init__(self, queries: Tensor) -> None:
        # Any centre serves, a good one makes the bounds tight; it is float32, so that subtracting it is one rounding,
        # or for float64 two, of which the first is small enough for the bound's margin.
        centre = queries.mean(0, dtype=torch.promote_types(queries.dtype, torch.float32)).float()
        spread = torch.linalg.vector_norm(queries[:1] - centre) if len(queries) else 0.0
        self.queries = queries
        self.centre = centre if torch.linalg.vector_norm(centre) > spread / 8 else None  # else not worth the pass
        fast = multiplies_bfloat16(queries.device) and queries.shape[1] >= GROUP
        self.levels = [BFLOAT16, FLOAT32, FLOAT64] if fast else [FLOAT32, FLOAT64]
        self.operand = Operand.of(queries, self.levels[0], self.centre)
        if not (self.operand.half_bound < LARGEST_HALF_BOUND).all():
            self.levels = [FLOAT64]
            self.operand = Operand.of(queries, FLOAT64, self.centre)

    def blocks(self, samples: Tensor) -> tuple[Tensor, ...]:
        """Samples [c, d], split so that a block's rounded samples and the products with them take little memory."""
        n, d = self.queries.shape
        width = BLOCK_VALUES // max(min(n, ROWS), d // 2, GROUP)
        return samples.tensor_split(-(-len(samples) // width)) if len(samples) else ()

    def against(self, block: Tensor) -> tuple[list[Level], Operand, Operand, Tensor]:
        """The operands for the products with a block of samples, [c, d].

        Returns:
            The levels, with the samples' norms considered too; both sides at the first of them, the samples in memory
            that is kept for the next block; and which samples are finite, bool [c].
        """
        samples = Operand.of(block, self.levels[0], self.centre, "samples")
        finite = samples.half_bound < LARGEST_HALF_BOUND  # false for NaN
        if not finite.all():
            fits, finite = finite, block.isfinite().all(1)
            if (finite & ~fits).any():
                queries, samples = (Operand.of(v, FLOAT64, self.centre) for v in (self.queries, block))
                finite &= samples.half_bound.isfinite()  # others are infinitely far in float64
                return [FLOAT64], queries, samples, finite
        return self.levels, self.operand, samples, finite


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
