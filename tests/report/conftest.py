"""Small made-up results, enough to fill every part of a report."""

import numpy as np
import pytest

from foveate.report import Curve, HeadMaps, Made, Results, Row, TokenCounts, TokenGrid

STAGES = ("after block 3", "after block 6")


def make_row(plan="dense", **changes):
    settings = {
        "plan": plan,
        "macs": 4.6e9,
        "params": 22_050_664,
        "accuracy_percent": 79.8,
        "accuracy_error": 0.55,
        "latency_ms": {1: (20.0, 19.5, 21.0), 16: (12.0, 11.9, 12.2)},
        "backend": "openvino",
        "precision": "bf16",
    }
    return Row(**settings | changes)


@pytest.fixture
def row():
    """Makes a Row from what is special about it."""
    return make_row


@pytest.fixture
def rows():
    return (
        make_row(),
        make_row(
            "spvit <top-k>",
            macs=2.3e9,
            accuracy_percent=79.3,
            tokens_mean=(126.0, 80.25),
            latency_ms={1: (12.5, 12.3, 12.8), 16: (7.5, 7.4, 7.7)},
            speedup={1: (1.6, 1.5, 1.7), 16: (1.6, 1.55, 1.65)},
            verdict={1: "helps", 16: "helps"},
        ),
        make_row(
            "argmax",
            macs=2.5e9,
            accuracy_percent=79.1,
            tokens_mean=(127.5, 81.5),
            speedup={1: (0.97, 0.9, 1.1), 16: (1.5, 1.4, 1.6)},
            verdict={1: "no gain here", 16: "helps"},
        ),
    )


@pytest.fixture
def grid():
    rng = np.random.default_rng(0)
    first = rng.random((3, 16)) < 0.6
    return TokenGrid(
        title="Kept & dropped",
        images=rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8),
        kept=(first, first[:, :4]),
        grids=((4, 4), (2, 2)),
        stages=STAGES,
        labels=("cat", "dog", "<cow>"),
    )


@pytest.fixture
def results(rows, grid):
    rng = np.random.default_rng(1)
    counts = (
        TokenCounts("argmax", (rng.integers(90, 160, 200), rng.integers(40, 110, 200)), (196, 196), STAGES),
        TokenCounts("spvit <top-k>", (np.full(200, 125), np.full(200, 80)), (196, 196), STAGES),
    )
    heads = HeadMaps("Selector 1", grid.images, rng.random((3, 2, 16)), rng.random((3, 16)), (4, 4), ("cat", "dog", "cow"))
    curve = Curve("CKA", "block", "similarity", np.arange(1, 5), np.linspace(0.1, 1, 4), np.zeros(4), np.ones(4), "It rises.")
    return Results(
        title="SPViT & friends",
        sentence="Fewer tokens, 1 < 2.",
        rows=rows,
        machine={"cpu_model": "Some CPU", "cpu_cores": 2, "load_average_1min": 3.5, "cpu_flags": ["bf16"], "python": "3.11"},
        made=Made("foveate demo --out <here>", 191.4, "2026-01-02T03:04:05", (0, 1), {"torch": "2.14.1"}),
        grids=(grid,),
        counts=counts,
        heads=(heads,),
        curves=(curve,),
        notes=("argmax ran one image at a time.",),
    )
