"""Phase 1 of PIVOT: how good a path is (Algorithm 1), the best path of every effort, and how many paths there are.

A path says which encoders of a backbone keep their attention; its effort is their number. Encoders are 1-based, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from foveate.errors import FoveateError


class Path(NamedTuple):
    """One path: the encoders whose attention is skipped, and its Path-Score S."""

    skip: tuple[int, ...]
    score: float


def path_score(cka: np.ndarray, skip: Collection[int]) -> float:
    """S = sum of CKA(MLP_i, A_j) over active encoders i and the inactive j that follow i directly (Algorithm 1).

    cka: float [D, D]; row i - 1 and column j - 1 hold CKA(MLP_i, A_j), of which only j > i is read. skip: inactive encoders.
    Inactive encoders in front of the first active one have no MLP before them that stands in, and score 0.
    Deviation: the algorithm says "for i in Config"; its worked example holds only where i runs over active encoders.
    Raises FoveateError for a matrix that is none and encoders that do not exist.
    """
    cka = _checked(cka)
    depth = len(cka)
    _check_encoders(skip, depth, "skip")
    score = 0.0
    for i in sorted(set(range(1, depth + 1)) - set(skip)):
        for j in range(i + 1, depth + 1):
            if j not in skip:
                break
            score += float(cka[i - 1, j - 1])
    return score


def best_paths(cka: np.ndarray, always: Collection[int] = ()) -> dict[int, Path]:
    """The path of highest score of every effort that there is, from 1 (or the number of `always`) to D, exact.

    cka: as for `path_score`. always: encoders whose attention cannot be skipped.
    Between two active encoders the score depends on these two alone. So the best way to go on from an active encoder with a given
    number of further ones is found once, from the last encoder backwards: D^3 steps instead of 2^D paths. Among paths of equal
    score the one that skips later encoders is taken (the paper sees skips preferred in deep layers).
    Raises FoveateError as `path_score` does.
    """
    cka = _checked(cka)
    depth = len(cka)
    _check_encoders(always, depth, "always")
    # run[i, j]: score of all encoders between i and j inactive; j = depth + 1 is the end.
    run = np.concatenate([np.zeros((depth, 1)), np.cumsum(np.triu(np.nan_to_num(cka), 1), axis=1)], axis=1)
    gain = lambda i, j: float(run[i - 1, j - 1])
    ahead: dict[int, dict[int, tuple[float, tuple[int, ...]]]] = {depth + 1: {0: (0.0, ())}}
    for i in range(depth, 0, -1):
        ahead[i] = {}
        for j in range(i + 1, depth + 2):
            for further, (score, skip) in ahead[j].items():
                effort = further + (j <= depth)
                found = (gain(i, j) + score, (*range(i + 1, j), *skip))
                ahead[i][effort] = max(ahead[i].get(effort, found), found)
            if j in always:
                break
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for first in range(1, min(always, default=depth) + 1):
        for further, (score, skip) in ahead[first].items():
            found = (score, (*range(1, first), *skip))
            best[further + 1] = max(best.get(further + 1, found), found)
    return {effort: Path(best[effort][1], path_score(cka, best[effort][1])) for effort in sorted(best)}


class DesignSpace(NamedTuple):
    """How many paths Phase 2 would search (Fig. 4b of PIVOT): with every path of every effort, and with the best one of each.

    paths: effort -> C(D, effort). pairs: (low, high) -> paths of low x paths of high. random: their sum. pivot: number of pairs.
    """

    paths: dict[int, int]
    pairs: dict[tuple[int, int], int]
    random: int
    pivot: int

    @property
    def ratio(self) -> float:
        """How often as large the space is without Phase 1."""
        return self.random / self.pivot if self.pivot else math.nan


def design_space(depth: int, efforts: Iterable[int]) -> DesignSpace:
    """The sizes of the design space of a backbone with `depth` encoders for pairs out of `efforts` (1...depth each)."""
    efforts = sorted(set(efforts))
    _check_encoders(efforts, depth, "efforts")
    paths = {effort: math.comb(depth, effort) for effort in efforts}
    pairs = {(low, high): paths[low] * paths[high] for low, high in combinations(efforts, 2)}
    return DesignSpace(paths, pairs, sum(pairs.values()), len(pairs))


def picture(depth: int, paths: dict[int, Path]) -> str:
    """The paths as Fig. 9 draws them, a line an effort: a full square is an active attention, an empty one a skipped one."""
    width = len(str(depth))
    name = lambda effort: f"effort {effort}".ljust(len(f"effort {depth}"))
    lines = ["".ljust(len(name(depth))) + "".join(f"  {block:>{width}}" for block in range(1, depth + 1)) + "   score"]
    for effort, path in sorted(paths.items(), reverse=True):
        squares = "".join("  " + ("□" if block in path.skip else "■").rjust(width) for block in range(1, depth + 1))
        lines.append(f"{name(effort)}{squares}  {path.score:6.3f}")
    return "\n".join(lines)


def plan_text(path: Path) -> str:
    """The path as a plan, to be pasted behind --plan; the highest effort skips nothing and is trained with L_En like the others."""
    return f"pivot(skip=[{','.join(map(str, path.skip))}])"


def _checked(cka: Sequence) -> np.ndarray:
    cka = np.asarray(cka, dtype=float)
    if cka.ndim != 2 or len(cka) != cka.shape[-1] or not len(cka):
        raise FoveateError(f"a CKA matrix of shape {list(cka.shape)}", "a square matrix, a row and a column an encoder",
                           "take the one that foveate.redundancy.cka_matrix returns")
    if not np.isfinite(cka[np.triu_indices(len(cka), 1)]).all():
        raise FoveateError("a CKA matrix with values above its diagonal that are not finite", "numbers for every pair of encoders i < j",
                           "compute it again on an intact model: foveate.redundancy.cka_matrix")
    return cka


def _check_encoders(numbers: Collection[int], depth: int, word: str) -> None:
    wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= depth]
    if wrong or len(set(numbers)) < len(numbers):
        raise FoveateError(f"{word}={list(numbers)!r} for a backbone of {depth} encoders", f"whole numbers from 1 to {depth}, each once",
                           "count encoders from 1, as the paper does")
