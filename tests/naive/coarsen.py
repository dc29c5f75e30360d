"""A transition between two stages while some slots are dead, slot by slot (semantics.md 7)."""

import numpy as np


def coarsen(x, live, packages, package_live, grid, kernel, stride, before, after, merge):
    """(new patches [slots', D'], new live [slots'], new grid) of one image.

    x: [slots, D]; live: [slots]; packages: [P, D]; package_live: [P]. before, after: slots of zeros added at both ends of
    each axis, after as (rows, columns). merge: from a field [kernel, kernel, D] to [D'].
    """
    rows, columns = grid
    alive = [p for p, weight in zip(packages, package_live) if weight]
    fill = np.mean(alive, axis=0) if alive else np.zeros(x.shape[1])
    padded = np.zeros((rows + before + after[0], columns + before + after[1], x.shape[1]))
    lives = np.zeros(padded.shape[:2])
    for slot in range(rows * columns):
        r, c = slot // columns + before, slot % columns + before
        padded[r, c] = x[slot] if live[slot] else fill
        lives[r, c] = live[slot]
    new_rows, new_columns = ((n - kernel) // stride + 1 for n in padded.shape[:2])
    new, new_live = [], []
    for r in range(new_rows):
        for c in range(new_columns):
            here = slice(r * stride, r * stride + kernel), slice(c * stride, c * stride + kernel)
            new.append(merge(padded[here]))
            new_live.append(float(any(lives[here].ravel())))
    return np.array(new), np.array(new_live), (new_rows, new_columns)
