"""Heat maps of matrices: figures on their cells, empty cells, and their place in a page."""

import numpy as np
import pytest

from foveate.report import Matrix, Results, load_results, render, save_results
from foveate.report.heatmaps import matrix_figure, matrix_in_words


@pytest.fixture
def matrix():
    values = np.array([[np.nan, 0.25, 0.9], [np.nan, np.nan, 1.0], [np.nan] * 3])
    return Matrix("Likeness <1>", "MLP", "attention", values, "What repeats & what does not.")


def test_every_value_stands_on_its_cell_and_empty_cells_stay_empty(matrix):
    axis = matrix_figure(matrix).axes[0]
    assert {(text.get_position(), text.get_text()) for text in axis.texts} == {((2, 1), ".25"), ((3, 1), ".90"), ((3, 2), "1.00")}
    assert list(axis.get_xticks()) == [1, 2, 3] and axis.get_ylim()[0] > axis.get_ylim()[1], "row 1 is on top"


def test_large_matrices_carry_no_figures():
    assert not matrix_figure(Matrix("m", "i", "j", np.random.default_rng(0).random((24, 24)))).axes[0].texts


def test_a_matrix_in_words(matrix):
    assert matrix_in_words(matrix) == "Likeness <1>: 0.25 to 1.00, the most at MLP 2 and attention 3"
    assert matrix_in_words(Matrix("m", "i", "j", np.full((2, 2), np.nan))) == "m"


def test_a_matrix_comes_back_from_disk_and_into_the_page(matrix, tmp_path):
    results = Results("Redundancy", matrices=(matrix,))
    save_results(tmp_path, results)
    back = load_results(tmp_path)
    np.testing.assert_array_equal(back.matrices[0].values, matrix.values)
    page = render(back)
    assert "aria-label=\"Likeness &lt;1&gt;: 0.25 to 1.00" in page and "What repeats &amp; what does not." in page
