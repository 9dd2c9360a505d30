"""The operands of the CPU search's products: vectors centred and rounded, each with a bound on what rounding loses.

The bound. Let x and y be centred, u the relative rounding of the operands and g that of one addition. In any order of
summation |fl(x . y) - x . y| <= (2 u + u^2 + (d + 4) g) |x| |y| (Higham, Accuracy and Stability, 3.1), and
2 |x| |y| <= |x|^2 + |y|^2. Hence, with e = 2 u + 2 u^2 + (3 d + 16) g, which also covers the rounding of the norms and
of the terms,

    |x - y|^2 >= (1 - e) |x|^2 + (1 - e) |y|^2 - 2 fl(x . y),

a term for each vector and the product. The term of y is stored in two more columns of its operand, so that a plain
matmul ranks the samples. Comparing rounded products needs no further margin, since rounding keeps the order.
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32  # products compared at once, by their maximum
PREPARED_VALUES = 2**18  # values centred at once, so that they stay in the second-level cache


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


BFLOAT16 = Level(torch.bfloat16, torch.float32, 2.0**-9 * (1 + 2.0**-14), 2.0**-24, 2.0**-125)
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

    Columns d and d + 1 of the matrix hold the bounds, the rest is 0: bfloat16 products on AMX read pairs and tiles of
    32, and what lies beyond the end of a row may be NaN. k' is k padded to whole groups, for the columns of a product.
    """

    vectors: Tensor
    level: Level
    matrix: Tensor
    half_bound: Tensor

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
        step = max(16, PREPARED_VALUES // max(1, d))
        for rows in (slice(start, min(k, start + step)) for start in range(0, k, step)):
            centred = vectors[rows].to(level.centred_dtype)
            if centre is not None:
                out = SCRATCH.take("centred", len(centred), d, level.centred_dtype)
                centred = torch.sub(centred, centre, out=out)
            torch.linalg.vector_norm(centred, dim=1, out=norm[rows])
            matrix[rows, :d] = centred
        matrix[:, d + 2 :] = 0
        u, g = level.operand_roundoff, level.sum_roundoff
        half = 0.5 * (1 - 2 * u - 2 * u * u - (3 * d + 16) * g)
        return cls(vectors, level, matrix[:, :width], norm.double().square() * half - 2 * d * level.underflow)

    def __getitem__(self, rows: slice | Tensor) -> "Operand":
        """Some of the vectors, without padding."""
        k = len(self.vectors)
        return Operand(self.vectors[rows], self.level, self.matrix[:k][rows], self.half_bound[rows])

    def as_rows(self) -> None:
        """Make the product add the bounds of the other side, whose columns d and d + 1 are multiplied by 1."""
        d = self.vectors.shape[1]
        self.matrix[:, d : d + 2] = 1

    def as_columns(self, admissible: Tensor) -> float:
        """Store the bounds in the matrix, and -inf for the vectors that are not admissible (bool [k]).

        The mean of the bounds is left out, so that it need not be rounded.

        Returns:
            What must be added to the rows' bounds instead.
        """
        matrix, half_bound, level = self.matrix, self.half_bound, self.level
        (k, d), admissible_bounds = self.vectors.shape, half_bound[admissible]
        shift = float(admissible_bounds.mean()) if len(admissible_bounds) else 0.0
        term = (shift - half_bound).to(level.centred_dtype)
        matrix[:k, d] = term
        matrix[:k, d + 1] = term - matrix[:k, d].to(level.centred_dtype)
        if len(admissible_bounds) < k:
            matrix[(~admissible).nonzero()[:, 0]] = 0  # infinity would spoil the sums
            matrix[:k, d].masked_fill_(~admissible, -torch.inf)
        matrix[k:] = 0
        matrix[k:, d] = -torch.inf
        u, g = level.operand_roundoff, level.sum_roundoff
        return shift - (u * u + (d + 4) * g) * abs(shift)
