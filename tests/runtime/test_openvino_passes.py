"""runtime/openvino_passes.py: graphs lose small operations, and nothing else."""

import pytest
import torch
from torch import nn

openvino = pytest.importorskip("openvino")
from foveate.runtime import openvino_backend  # noqa: E402
from foveate.runtime.openvino_passes import simplify  # noqa: E402

IMAGES = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def sorted_top_k(x):
    return x.flatten(1).topk(5, dim=1, sorted=False).indices.sort(dim=1).values.float()


def first_of_two(x):
    return torch.stack([x, 1 - x], -1)[..., 0] * 2


def last_of_three_along_another_axis(x):
    return torch.stack([x, x + 1, x * x], 1).select(1, 2)


def sorted_values(x):
    return x.flatten(1).topk(5, dim=1, sorted=False).values.sort(dim=1).values


def falling_indices(x):
    return x.flatten(1).topk(5, dim=1, sorted=False).indices.sort(dim=1, descending=True).values.float()


def indices_used_twice(x):
    found = x.flatten(1).topk(5, dim=1, sorted=False)
    return found.indices.sort(dim=1).values + found.values.sum(1, keepdim=True)


def both_of_two(x):
    made = torch.stack([x, 1 - x], -1)
    return made[..., 0] + made.sum(-1)


def along_the_wrong_axis(x):
    return torch.stack([x, 1 - x], -1).select(1, 0)


REWRITTEN = [(sorted_top_k, "TopK"), (first_of_two, "Concat"), (last_of_three_along_another_axis, "Concat")]
LEFT = [sorted_values, falling_indices, indices_used_twice, along_the_wrong_axis]


def converted(function, monkeypatch, simplified):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return function(x * self.one)

    monkeypatch.setattr(openvino_backend, "simplify", simplify if simplified else lambda graph: None)
    return openvino_backend.openvino_graph(Model(), [IMAGES[:2].flip(-1)], single=False)


def kinds(graph):
    return [node.get_type_name() for node in graph.get_ordered_ops() if node.get_type_name() in ("TopK", "Concat", "Gather")]


@pytest.mark.parametrize("function, fewer", REWRITTEN)
def test_two_operations_become_one_or_none(function, fewer, monkeypatch):
    before, after = (kinds(converted(function, monkeypatch, simplified)) for simplified in (False, True))
    assert after.count(fewer) == before.count(fewer) - 1


@pytest.mark.parametrize("function", LEFT)
def test_what_only_looks_alike_stays(function, monkeypatch):
    before, after = (kinds(converted(function, monkeypatch, simplified)) for simplified in (False, True))
    assert before == after


@pytest.mark.parametrize("function", [*(function for function, _ in REWRITTEN), *LEFT, both_of_two])
def test_values_stay_the_same(function, monkeypatch):
    run = openvino_backend.openvino_runner(converted(function, monkeypatch, True), "fp32", 1)
    for count in (3, 1):
        torch.testing.assert_close(run(IMAGES[:count]), function(IMAGES[:count]), rtol=1e-6, atol=1e-6)
