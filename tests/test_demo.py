"""The main job, small: every part runs and what it writes is whole."""

import numpy as np
import pytest

from foveate.demo import run_demo
from foveate.report import load_results


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, quick=True)


def test_dense_spvit_and_random_are_evaluated_and_timed(demo):
    _, results = demo
    rows = {row.plan for row in results.rows}
    assert rows == {"dense", "spvit argmax", "spvit topk", "random", "random, argmax's counts"}
    fastest = [row for row in results.rows if row.backend == results.rows[0].backend]
    assert {1, 16} <= {batch for row in fastest for batch in row.latency_ms}
    for row in results.rows:
        assert 50 < row.accuracy_percent <= 100 and row.macs > 0
        for batch, verdict in row.verdict.items():
            assert verdict == ("helps" if row.speedup[batch][1] > 1 else "no gain here")


def test_tokens_leave_and_macs_with_them(demo):
    _, results = demo
    by = {row.plan: row for row in results.rows if row.backend in ("", results.rows[0].backend)}
    assert by["dense"].tokens_mean == ()
    for plan in ("spvit topk", "spvit argmax", "random"):
        tokens = by[plan].tokens_mean
        assert 197 > tokens[0] > tokens[1] > tokens[2] and by[plan].macs < 0.7 * by["dense"].macs
    assert by["random"].tokens_mean == by["spvit topk"].tokens_mean
    np.testing.assert_allclose(by["random, argmax's counts"].tokens_mean, by["spvit argmax"].tokens_mean)


def test_the_report_is_one_self_contained_file(demo):
    out, results = demo
    page = (out / "report.html").read_text()
    assert "src=\"http" not in page and "href=\"http" not in page
    for word in ("Live: a fresh plan", "spvit topk", "after block 9", "helps"):
        assert word in page
    assert load_results(out).rows == results.rows
