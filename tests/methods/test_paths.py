"""Phase 1 of PIVOT: the paper's example, the search against all paths, and the sizes of the design space."""

import math
from itertools import combinations

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.methods.pivot.paths import Path, best_paths, design_space, path_score, picture, plan_text


def matrix(depth: int, seed: int = 0) -> np.ndarray:
    """Random values above the diagonal, NaN elsewhere, as cka_matrix returns them."""
    values = np.random.default_rng(seed).random((depth, depth))
    return np.where(np.triu(np.ones((depth, depth), bool), 1), values, np.nan)


def naive_score(cka: np.ndarray, skip: tuple[int, ...]) -> float:
    """Every skipped encoder is stood in for by the last active one before it."""
    total = 0.0
    for j in skip:
        active = [i for i in range(1, j) if i not in skip]
        total += cka[active[-1] - 1, j - 1] if active else 0.0
    return total


def all_paths(cka: np.ndarray, always: tuple[int, ...] = ()) -> dict[int, Path]:
    """The best path of every effort, by looking at each."""
    depth, best = len(cka), {}
    for effort in range(max(1, len(always)), depth + 1):
        skips = [s for s in combinations(range(1, depth + 1), depth - effort) if not set(s) & set(always)]
        best[effort] = max((Path(s, naive_score(cka, s)) for s in skips), key=lambda path: path.score)
    return best


def test_the_papers_example():
    cka = matrix(12)
    expected = cka[1, 2] + cka[1, 3] + cka[7, 8] + cka[7, 9]
    assert path_score(cka, (3, 4, 9, 10)) == pytest.approx(expected, rel=1e-12)
    assert path_score(cka, {10, 4, 3, 9}) == path_score(cka, (3, 4, 9, 10))


@pytest.mark.parametrize("skip, pairs", [
    ((), []), ((1,), []), ((1, 2, 5), [(4, 5)]), ((2,), [(1, 2)]), ((6,), [(5, 6)]), ((2, 3, 4, 5, 6), [(1, j) for j in range(2, 7)]),
    ((2, 4, 6), [(1, 2), (3, 4), (5, 6)]), ((1, 2, 3, 4, 5, 6), []), ((5, 6), [(4, 5), (4, 6)])])
def test_what_is_summed(skip, pairs):
    cka = matrix(6)
    assert path_score(cka, skip) == pytest.approx(sum(cka[i - 1, j - 1] for i, j in pairs), rel=1e-12)


@pytest.mark.parametrize("depth", range(1, 10))
@pytest.mark.parametrize("kind", ["random", "deep", "signed", "flat"])
def test_the_search_finds_what_looking_at_every_path_finds(depth, kind):
    cka = matrix(depth, depth)
    if kind == "deep":  # alike where the paper sees it: later encoders, near ones
        i, j = np.indices(cka.shape)
        cka = np.where(np.isnan(cka), np.nan, 0.1 * cka + j / depth - 0.2 * (j - i))
    elif kind == "signed":  # the unbiased estimate may be negative
        cka = cka - 0.5
    elif kind == "flat":
        cka = np.where(np.isnan(cka), np.nan, 0.5)
    found, expected = best_paths(cka), all_paths(cka)
    assert list(found) == list(expected) == list(range(1, depth + 1))
    for effort, path in found.items():
        assert path.score == pytest.approx(expected[effort].score, abs=1e-9)
        assert path.score == pytest.approx(naive_score(cka, path.skip), abs=1e-9)
        assert len(path.skip) == depth - effort and list(path.skip) == sorted(set(path.skip))
        if kind in ("random", "deep"):
            assert path.skip == expected[effort].skip, "without ties there is one best path"


@pytest.mark.parametrize("always", [(1,), (3,), (8,), (2, 5), (1, 4, 5, 8)])
def test_encoders_that_cannot_be_skipped_stay(always):
    cka = matrix(8, 3) - 0.3
    found, expected = best_paths(cka, always), all_paths(cka, always)
    assert list(found) == list(expected)
    for effort, path in found.items():
        assert not set(path.skip) & set(always)
        assert path.score == pytest.approx(expected[effort].score, abs=1e-9)


def test_ties_skip_late_encoders_and_leading_ones_gain_nothing():
    assert best_paths(np.full((6, 6), 0.5))[3].skip == (4, 5, 6)
    cka = np.full((4, 4), 0.1)
    cka[1, 2:] = 0.9
    assert best_paths(cka)[1] == Path((1, 3, 4), pytest.approx(1.8)), "0 for encoder 1, and more behind encoder 2 than behind 1"


def test_deep_models_are_searched_exactly_in_few_steps():
    """2^24 paths; the search must not look at each. A path that wins by construction is found."""
    cka = 0.01 * matrix(24, 5)
    skip = (3, 4, 9, 10, 17, 18, 19)
    for j in skip:
        cka[max(i for i in range(1, j) if i not in skip) - 1, j - 1] += 1
    best = best_paths(cka)
    assert best[17].skip == skip and list(best) == list(range(1, 25)) and best[24] == Path((), 0.0)


def test_the_design_space_of_the_paper():
    space = design_space(12, range(3, 10))
    assert space.paths == {3: 220, 4: 495, 5: 792, 6: 924, 7: 792, 8: 495, 9: 220}
    assert space.pairs[3, 6] == 203_280 == math.comb(12, 3) * math.comb(12, 6)
    assert (space.pivot, space.random) == (21, 6_406_345) and len(space.pairs) == 21
    assert space.ratio == pytest.approx(3.05e5, rel=1e-2)
    assert design_space(16, range(4, 13)).paths == {4: 1820, 5: 4368, 6: 8008, 7: 11440, 8: 12870, 9: 11440, 10: 8008, 11: 4368, 12: 1820}
    assert design_space(5, [3]).paths == {3: 10} and math.isnan(design_space(5, [3]).ratio)


def test_the_picture_and_the_plan():
    paths = {12: Path((), 0.0), 9: Path((3, 4, 10), 1.5)}
    lines = picture(12, paths).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["effort", "12"], ["effort", "9"]]
    assert lines[0].split() == [*map(str, range(1, 13)), "score"]
    assert lines[2].split()[2:] == ["■", "■", "□", "□", *"■■■■■", "□", "■", "■", "1.500"]
    columns = [lines[0].index("  3") + 2, lines[0].index(" 10") + 2]
    assert [lines[2][c] for c in columns] == ["□", "□"] and len({len(line) for line in lines}) == 1
    assert plan_text(paths[9]) == "pivot(skip=[3,4,10])" and plan_text(paths[12]) == "pivot(skip=[])"


@pytest.mark.parametrize("call, word", [
    (lambda: path_score(np.ones((3, 4)), ()), "shape"), (lambda: best_paths(np.ones(3)), "shape"), (lambda: best_paths(np.ones((0, 0))), "shape"),
    (lambda: path_score(np.full((3, 3), np.nan), ()), "not finite"), (lambda: path_score(matrix(4), (0,)), "skip"),
    (lambda: path_score(matrix(4), (5,)), "from 1 to 4"), (lambda: path_score(matrix(4), (2, 2)), "each once"),
    (lambda: path_score(matrix(4), (2.0,)), "whole numbers"), (lambda: best_paths(matrix(4), (True,)), "always"),
    (lambda: design_space(12, (0, 3)), "efforts"), (lambda: design_space(12, (13,)), "from 1 to 12")])
def test_what_makes_no_path_is_refused(call, word):
    with pytest.raises(FoveateError, match=word):
        call()
