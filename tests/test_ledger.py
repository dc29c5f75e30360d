"""The Ledger: totals, groups, means and JSON."""

import json
import subprocess
import sys

import pytest

from foveate.errors import FoveateError
from foveate.ledger import Ledger, Operation

STEM = Operation("conv", "embed.proj", m=4, n=8, k=12)
SCORES = Operation("gemm", "blocks.3.attn.qk", m=5, n=5, k=4, times=2)
SOFTMAX = Operation("softmax", "blocks.3.attn.softmax", m=5, n=5, times=2)
LEDGER = Ledger((STEM, SCORES, SOFTMAX), params=100)


def test_only_products_have_macs():
    assert (STEM.macs, SCORES.macs, SOFTMAX.macs) == (384, 200, 0)
    assert SOFTMAX.elements == 50
    assert LEDGER.macs == 584


@pytest.mark.parametrize(
    ("origin", "group", "block"),
    [
        ("embed.proj", "embed", None),
        ("blocks.3.attn.qkv.q_proj", "qkv", 3),
        ("blocks.12.attn.av", "av", 12),
        ("blocks.1.mlp.fc1", "mlp", 1),
        ("blocks.4.selector.hidden1", "selector", 4),
        ("blocks.4.package.sum", "package", 4),
        ("blocks.2.norm1", "norm", 2),
        ("head.pool.kv", "head", None),
        ("aux_head.fc", "aux_head", None),
    ],
)
def test_an_origin_names_its_group_and_its_block(origin, group, block):
    operation = Operation("gemm", origin)
    assert (operation.group, operation.block) == (group, block)


def test_groups_and_blocks_sum_to_the_total():
    assert LEDGER.by_operation() == {"embed": 384, "qk": 200, "softmax": 0}
    assert LEDGER.by_block() == {"embed": 384, "blocks.3": 200}
    assert LEDGER.shares() == {"embed": 384 / 584, "qk": 200 / 584, "softmax": 0}
    assert Ledger().shares() == {}


def test_shares_are_of_the_latency_where_there_is_one():
    timed = Ledger((Operation("gemm", "embed.proj", latency_ms=3.0), Operation("softmax", "blocks.1.attn.softmax", latency_ms=1.0)))
    assert timed.latency_ms == 4.0 and timed.energy_mj is None
    assert timed.shares() == {"embed": 0.75, "softmax": 0.25}
    assert timed.shares("macs") == {"embed": 1.0, "softmax": 0.0}


def test_include_blocks_leaves_embeddings_and_heads_out():
    assert LEDGER.only("blocks").macs == 200 and LEDGER.only("all") == LEDGER
    with pytest.raises(FoveateError, match="'all', 'blocks', 'attention'"):
        LEDGER.only("block")


def test_arithmetic_counts_what_table_1_of_vitality_counts():
    ledger = Ledger((Operation("gemm", "blocks.1.attn.qk", m=2, n=3, k=4, times=5), Operation("softmax", "blocks.1.attn.softmax", m=2, n=3),
                     Operation("gemm", "blocks.1.attn.proj", m=2, n=2, k=2), Operation("divide", "blocks.1.attn.ratio", m=2, n=2),
                     Operation("sum", "blocks.1.attn.k_sum", m=3, n=2), Operation("add", "blocks.1.attn.k_centred", m=1, n=2), STEM))
    counts = ledger.only("attention").arithmetic()
    assert counts == {"mul": 120, "add": 120 + 6 + 6 + 2, "div": 6 + 4, "exp": 6}
    assert ledger.only("blocks").arithmetic()["mul"] == 128


def test_addition_runs_both():
    both = LEDGER + Ledger((STEM,), params=7, label="low effort")
    assert (both.macs, both.params, both.label) == (968, 107, "one image + low effort")
    assert (LEDGER + LEDGER).label == "one image"


def test_the_mean_is_a_mean_of_costs_and_keeps_the_shapes():
    def attention(tokens):
        return Ledger((Operation("gemm", "blocks.1.attn.qk", m=tokens, n=tokens, k=1, latency_ms=tokens),), params=3)

    mean = Ledger.mean([attention(10), attention(20)], weights=[3, 1])
    assert mean.macs == pytest.approx((3 * 100 + 400) / 4)
    assert mean.macs != pytest.approx(attention(12.5).macs)
    assert mean.latency_ms == pytest.approx((3 * 10 + 20) / 4)
    assert [(o.m, o.times) for o in mean.operations] == [(10, 0.75), (20, 0.25)]
    assert (mean.params, mean.label) == (3, "mean over 4 images")
    same = Ledger.mean([attention(10), attention(10)])
    assert [(o.m, o.times) for o in same.operations] == [(10, 1)]


def test_a_mean_of_nothing_or_of_two_models_is_refused():
    with pytest.raises(FoveateError, match="at least one"):
        Ledger.mean([])
    with pytest.raises(FoveateError, match="one model"):
        Ledger.mean([LEDGER, Ledger(params=1)])


def test_scaling_scales_times_and_clock_but_not_the_parameters():
    half = Ledger((Operation("gemm", "embed.proj", m=2, latency_ms=4.0, energy_mj=6.0),), params=9).scaled(0.5)
    assert (half.macs, half.latency_ms, half.energy_mj, half.params) == (1.0, 2.0, 3.0, 9)


def test_json_round_trip():
    timed = Ledger((Operation("gemm", "head.fc", m=2, times=0.25, latency_ms=1.5, energy_mj=0.1), SOFTMAX), 5, "simulated")
    assert Ledger.from_json(timed.to_json()) == timed


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"version": 1, "label": "x", "params": 1, "operations": [{"a": 1}]})])
def test_what_is_no_ledger_is_refused(text):
    with pytest.raises(FoveateError, match="no ledger"):
        Ledger.from_json(text)


def test_a_newer_ledger_is_refused():
    with pytest.raises(FoveateError, match="version 2"):
        Ledger.from_json(json.dumps({"version": 2}))


def test_the_table_has_a_row_for_each_group_that_costs_and_the_label():
    lines = LEDGER.table().splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["embed", "qk"]
    assert "softmax" not in LEDGER.table()
    assert lines[-1] == "one image; 100 parameters"
    assert len({len(line) for line in lines[:-1]}) == 1
    timed = Ledger((Operation("softmax", "blocks.1.attn.softmax", latency_ms=2.0),))
    assert "2.000" in timed.table() and "share of ms" in timed.table()


def test_the_counting_wing_loads_no_torch():
    code = (
        "import sys, foveate.ledger, foveate.card, foveate.workload, foveate.counting, foveate.methods.spvit.cost\n"
        "from foveate.counting import count\n"
        "count('deit_small_patch16_224', 'spvit(after=[3],keep=[0.5]) + structure(keep=0.5)')\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
