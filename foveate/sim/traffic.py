"""Words that a product of matrices moves between an array and its memories.

The stationary operand is read once. The streamed one is read again for every fold along the columns, unless it fits into its
buffer. Partial sums of the folds along the rows (the reduction) stay in the output buffer where a tile of them fits, and go
out and come back otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from foveate.sim.cost import Work
from foveate.sim.dataflow import INPUT, OUTPUT, WEIGHT, Folding
from foveate.sim.mapping import Rule


@dataclass(frozen=True)
class Words:
    """Numbers moved for one product: input and weight words read, output words written, partial sums out and back."""

    inputs: float
    weights: float
    outputs: float
    partial: float = 0

    def bytes(self, precision_bits: int, sum_bits: int) -> float:
        """All of them in bytes; partial sums are sum_bits wide."""
        return ((self.inputs + self.weights + self.outputs) * precision_bits + self.partial * sum_bits) / 8


def array_words(fold: Folding) -> Words:
    """Words between the array and its buffers: SCALE-Sim's "SRAM reads" and "SRAM writes" (outputs: one for every fold).

    For output stationary SCALE-Sim 3.0.0 writes more where the last folds are partly filled; ours is m n.
    """
    inputs, weights, outputs = fold.m * fold.k, fold.k * fold.n, fold.m * fold.n
    if fold.dataflow == INPUT:
        return Words(inputs, weights * fold.column_folds, outputs * fold.row_folds)
    if fold.dataflow == WEIGHT:
        return Words(inputs * fold.column_folds, weights, outputs * fold.row_folds)
    return Words(inputs * fold.column_folds, weights * fold.row_folds, outputs)


def outside_words(fold: Folding, room: Mapping[str, float]) -> Words:
    """Words between the buffers and the memory outside.

    room: words that each buffer holds ("inputs" and "weights": operands; "outputs": partial sums); absent = no limit.
    """
    read, endless = array_words(fold), float("inf")
    inputs = fold.m * fold.k if fold.m * fold.k <= room.get("inputs", endless) else read.inputs
    weights = fold.k * fold.n if fold.k * fold.n <= room.get("weights", endless) else read.weights
    spilled = tile_words(fold) > room.get("outputs", endless)
    return Words(inputs, weights, fold.m * fold.n, 2 * (fold.row_folds - 1) * fold.m * fold.n if spilled else 0)


def tile_words(fold: Folding) -> int:
    """Partial sums of one fold that wait for the next one: a row for every streamed vector.

    0 where one fold holds the whole reduction and where the sums stay in the array (output stationary).
    """
    if fold.dataflow == OUTPUT or fold.row_folds == 1:
        return 0
    return min(fold.columns, fold.lengths[1]) * fold.lengths[2]


def line_bytes(work: Work, rule: Rule, line: int, precision_bits: int, sum_bits: int) -> float:
    """Bytes of one repetition in a memory of lines: each operand passes once, in whole lines of `line` words.

    An operand with a row for every token has the rows of all repetitions (heads) side by side, as a linear layer wrote them, and each
    starts on a line of its own. Others lie close.
    """
    def rows(count: int, width: int) -> float:
        return count * math.ceil(width * work.times / line) * line / work.times if work.times else 0

    m, n, k = work.m, work.n, work.k
    if rule.tokens == "m":
        words = {"inputs": rows(m, k), "weights": k * n, "outputs": rows(m, n)}
    else:
        words = {"inputs": rows(k, m), "weights": rows(k, n), "outputs": m * n}
    return sum(count * (sum_bits if name in rule.wide else precision_bits) / 8 for name, count in words.items() if name not in rule.stays)
