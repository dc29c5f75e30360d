"""How many cycles a systolic array needs for a product of matrices, fold by fold.

The product is [m, k] x [k, n] (inputs x weights) on an array of R rows and C columns. Each dataflow lays two of the three
dimensions out on the array and streams the third through it:

    dataflow            rows  columns  streamed  cycles of a fold
    input stationary     k      m         n      2 R + C + n - 2
    weight stationary    k      n         m      2 R + C + m - 2
    output stationary    m      n         k        R + C + k - 2

A dimension longer than the array takes ceil(dimension / R or C) folds, one after the other. A stationary operand is first
pushed in from the top, one row a cycle (R cycles). Then the streamed operand enters, each row one cycle after the row above
(R - 1 cycles of skew), and the last column sees it C - 1 cycles after the first. Output stationary loads nothing, and its
results leave on wires of their own when their last product is done. Partly filled folds take as long as full ones: the
values still travel through the whole array.

These are SCALE-Sim's cycles (Samajdar et al. 2018; the package scalesim 3.0.0): the length of its demand matrices. Its
COMPUTE_REPORT prints the index of the last cycle, which is one less. The SCALE-Sim paper adds R cycles a fold to output
stationary for results that are shifted out through the array; the package does not, and neither do we.
"""

import math
from dataclasses import dataclass

INPUT, WEIGHT, OUTPUT = "input-stationary", "weight-stationary", "output-stationary"
DATAFLOWS = (INPUT, WEIGHT, OUTPUT)


@dataclass(frozen=True)
class Folding:
    """The product [m, k] x [k, n] cut to fit an array of rows x columns; all five numbers from 1, dataflow one of DATAFLOWS.

    joined: folds follow one another without a gap, each as long as what streams; filling the array comes on top, once. packed: the
    share of stationary places that hold something after packing; None: all, cut along both dimensions. held_cycles: of a fold, instead of streaming.
    """

    m: int
    n: int
    k: int
    rows: int
    columns: int
    dataflow: str
    joined: bool = False
    packed: float | None = None
    held_cycles: float | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Length of the dimension along the rows, of that along the columns, and of the streamed one."""
        m, n, k = self.m, self.n, self.k
        return {INPUT: (k, m, n), WEIGHT: (k, n, m), OUTPUT: (m, n, k)}[self.dataflow]

    @property
    def row_folds(self) -> int:
        """Pieces of the dimension along the rows."""
        return -(-self.lengths[0] // self.rows)

    @property
    def column_folds(self) -> int:
        """Pieces of the dimension along the columns."""
        return -(-self.lengths[1] // self.columns)

    @property
    def folds(self) -> int:
        """Pieces of the whole product."""
        if self.packed is None:
            return self.row_folds * self.column_folds
        return math.ceil(self.packed * self.lengths[0] * self.lengths[1] / (self.rows * self.columns))

    @property
    def fold_cycles(self) -> float:
        """Cycles of one fold: load, stream, skew of the rows and columns."""
        if self.held_cycles is not None:
            return self.held_cycles
        if self.joined:
            return self.lengths[2]
        load = 0 if self.dataflow == OUTPUT else self.rows
        return load + self.rows + self.columns + self.lengths[2] - 2

    @property
    def cycles(self) -> float:
        """Cycles of the product, without waiting for memory."""
        return self.folds * self.fold_cycles

    @property
    def utilisation(self) -> float:
        """Share of processing elements times cycles that multiply something the product needs."""
        return (self.packed or 1) * self.m * self.n * self.k / (self.cycles * self.rows * self.columns)
