"""A systolic array, register by register and cycle by cycle: slow, and it computes the product that it times.

Every processing element sees only its own registers and those of its neighbours of the cycle before. Nothing here uses the
formulas that it is compared with.
"""

import numpy as np


def input_stationary(inputs: np.ndarray, weights: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """inputs [m, k] stay (k on the rows, m on the columns), weights [k, n] stream. Returns [m, n] and the cycles."""
    product, cycles = stationary(inputs.T, weights, rows, columns)
    return product.T, cycles


def weight_stationary(inputs: np.ndarray, weights: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """weights [k, n] stay (k on the rows, n on the columns), inputs [m, k] stream. Returns [m, n] and the cycles."""
    return stationary(weights, inputs.T, rows, columns)


def stationary(held: np.ndarray, streamed: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """held [k, c] is kept, streamed [k, t] passes by; partial sums go down. Returns streamed.T @ held, [t, c], and the cycles."""
    total, cycles = np.zeros((streamed.shape[1], held.shape[1])), 0
    for column in range(0, held.shape[1], columns):
        for row in range(0, held.shape[0], rows):
            here = held[row : row + rows, column : column + columns]
            tile = np.zeros((rows, columns))
            tile[: here.shape[0], : here.shape[1]] = here
            part = np.zeros((rows, streamed.shape[1]))
            part[: here.shape[0]] = streamed[row : row + rows]
            results, taken = _hold(tile, part)
            total[:, column : column + columns] += results[:, : here.shape[1]]
            cycles += taken
    return total, cycles


def _hold(tile: np.ndarray, streamed: np.ndarray) -> tuple[np.ndarray, int]:
    """One fold. Values go right, sums go down, a register between neighbours; results leave below the last row."""
    rows, columns = tile.shape
    length, held = streamed.shape[1], np.zeros((rows, columns))
    cycles = 0
    for line in tile[::-1]:  # the last row goes in first and is pushed down by the others
        held = np.vstack([line, held[:-1]])
        cycles += 1
    passing, sums = np.zeros((rows, columns)), np.zeros((rows, columns))
    results, left = np.zeros((length, columns)), length * columns
    tick = 0
    while left:
        entering = np.array([streamed[r, tick - r] if 0 <= tick - r < length else 0.0 for r in range(rows)])
        passing = np.hstack([entering[:, None], passing[:, :-1]])
        sums = np.vstack([np.zeros((1, columns)), sums[:-1]]) + passing * held
        for column in range(columns):
            vector = tick - (rows - 1) - column
            if 0 <= vector < length:
                results[vector, column] = sums[-1, column]
                left -= 1
        tick += 1
    return results, cycles + tick


def output_stationary(inputs: np.ndarray, weights: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """Both stream, sums stay (m on the rows, n on the columns) and leave on their own wires. Returns [m, n] and the cycles."""
    (m, k), n = inputs.shape, weights.shape[1]
    total, cycles = np.zeros((m, n)), 0
    for row in range(0, m, rows):
        for column in range(0, n, columns):
            left, above = np.zeros((rows, k)), np.zeros((k, columns))
            left[: min(rows, m - row)] = inputs[row : row + rows]
            above[:, : min(columns, n - column)] = weights[:, column : column + columns]
            results, taken = _gather(left, above)
            total[row : row + rows, column : column + columns] = results[: m - row, : n - column]
            cycles += taken
    return total, cycles


def _gather(left: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, int]:
    """One fold: inputs go right, weights go down, each place adds up its own sum until its last pair has passed."""
    (rows, length), columns = left.shape, above.shape[1]
    right, down, sums = np.zeros((rows, columns)), np.zeros((rows, columns)), np.zeros((rows, columns))
    seen, tick = np.zeros((rows, columns), dtype=int), 0
    while seen.min() < length:
        entering = np.array([left[r, tick - r] if 0 <= tick - r < length else 0.0 for r in range(rows)])
        arriving = np.array([above[tick - c, c] if 0 <= tick - c < length else 0.0 for c in range(columns)])
        right = np.hstack([entering[:, None], right[:, :-1]])
        down = np.vstack([arriving[None, :], down[:-1]])
        sums += right * down
        places = tick - np.add.outer(np.arange(rows), np.arange(columns))
        seen += (places >= 0) & (places < length)
        tick += 1
    return sums, tick
