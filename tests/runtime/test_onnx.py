"""ONNX Runtime and torch.export: what they make of every method equals eager, in batches it was not traced with."""

import pytest
import tiny
import torch
from torch import nn

import foveate as fv
from foveate.methods import METHODS
from foveate.runtime import installed_backends, load_engine, onnx_backend
from foveate.runtime.exported import exported_program
from foveate.runtime.maker import images_at_once
from foveate.runtime.onnx_int8 import quantised_onnx

pytestmark = pytest.mark.skipif("onnxruntime" not in installed_backends(), reason="onnxruntime, onnx or onnxscript is not installed")

# An export takes seconds, so that several methods share a model: each has its own blocks in the graph.
PLANS = {
    "kernels+topk": ("deit", [fv.Linformer(rank=4, blocks=(1,)), fv.Performer(blocks=(2,)), fv.LinearTransformer(blocks=(3,)), fv.Efficient(blocks=(4,)),
                              fv.SPViT(after=(1, 3), keep=(0.7, 0.4))]),
    "branches+argmax": ("deit", [fv.ViTALiTy(mode="lowrank+sparse", threshold=0.1, blocks=(1,)), fv.ViTCoD(blocks=(2,)), fv.PIVOT(skip=(3,)),
                                 fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")]),
    "evit": ("deit", [fv.EViT(after=(1, 3), keep=(0.7, 0.4))]),
    "tome+structure": ("deit", [fv.Structure(keep=0.7), fv.ToMe(r=3)]),
    "ats+random": ("deit", [fv.ATS(after=(2,), tokens=0.6), fv.Random(after=(3,), keep=(0.3,))]),
    "iret": ("iret", [fv.IRET(threshold=0.05)]),
    "argmax, rotary": ("eva02", [fv.SPViT(after=(2,), keep=(0.5,), select="argmax")]),
}
STAGED = {"earlyexit"}  # one graph a segment: see test_staged.py


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))


def held_to_eager(run, model, images, single):
    with torch.no_grad():
        expected, trace = model.traced(images)
        same(torch.cat([run(image[None]) for image in images]), expected)
        if single:
            assert len(set(zip(*trace.block_tokens))) > 1, "all images keep equally many tokens: this test shows nothing"
        else:
            for count in (7, 3):
                same(run(images[:count]), expected[:count])


def test_every_method_is_exported():
    assert {method.name for _, methods in PLANS.values() for method in methods} == set(METHODS) - STAGED


@pytest.mark.parametrize("name", PLANS)
def test_exported_equals_eager(name, monkeypatch):
    key, methods = PLANS[name]
    model, images = tiny.adapted(fv.Plan(methods), key).eval(), tiny.images(key, 7)
    single = images_at_once(model, images) == 1
    program = exported_program(model, images.flip(-1), 1 if single else None)
    held_to_eager(program.module(), model, images, single)
    monkeypatch.setattr(onnx_backend, "exported_program", lambda *_: program)
    graph = onnx_backend.onnx_graph(model, torch.empty(0), single)
    held_to_eager(onnx_backend.onnx_runner(graph, 1), model, images, single)
    assert [graph.graph.input[0].name, graph.graph.output[0].name] == ["images", "logits"]
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_value if single else shape[0].dim_param) == (1 if single else "batch")
    assert b"site-packages" not in graph.SerializeToString(), "stack traces with paths of this machine"
    if name == "kernels+topk":
        in_8_bits(graph, model, images)


def in_8_bits(graph, model, images):
    """Linears of the backbone compute in integers, those of selectors do not, and the logits stay near."""
    names = [method.name for method in model.plan.methods]
    quantised = quantised_onnx(graph, names)
    rounded = {node.name.split("/")[0] for node in quantised.graph.node if node.op_type == "MatMulInteger"}
    assert {"blocks.0.mlp.fc1", "blocks.3.attn.qkv"} <= rounded and not any(name.startswith(tuple(names)) for name in rounded)
    logits, expected = onnx_backend.onnx_runner(quantised, 1)(images), onnx_backend.onnx_runner(graph, 1)(images)
    assert 1e-4 < ((logits - expected).abs().amax(1) / expected.abs().max()).median() < 0.1


# engines


class Narrow(nn.Module):
    """A classifier small enough to export in a moment."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Brightest(Narrow):
    """Keeps another number of values in each image: the mean of those above the image's mean (one image at a time)."""

    class plan:
        data_dependent, methods, pruning_blocks = True, ("any",), ()

    def forward(self, images):
        values = images.flatten()
        kept = values[(values > values.mean()).nonzero()[:, 0]]
        return self.linear.weight.sum(1)[None] * kept.mean() + kept.shape[0]


class Foreign(Narrow):
    def forward(self, images):
        return self.linear(torch.special.bessel_j0(images).flatten(1))


class Undecided(Narrow):
    def forward(self, images):
        return self.linear(images.flatten(1)) * (2 if images.mean() > 0 else 1)


def test_an_engine_runs_any_batch_and_leaves_its_answers_alone():
    images = torch.randn(6, 3, 2, 2)
    model = Narrow().eval()
    engine = load_engine(model, "onnxruntime", "fp32", images)
    assert (engine.name, engine.max_batch) == ("onnxruntime fp32", None) and engine.agreement.worst < 1e-6
    first = engine(images)
    kept = first.clone()
    same(engine(-images[:2]), model(-images[:2]).detach())
    assert torch.equal(first, kept)


def test_per_image_counts_run_one_image_at_a_time():
    images = torch.randn(6, 3, 2, 2)
    model = Brightest().eval()
    engine = load_engine(model, "onnxruntime", "fp32", images)
    assert engine.max_batch == 1
    for image in images:
        same(engine(image[None]), model(image[None]).detach())


@pytest.mark.parametrize("model, word", [(Foreign(), "ONNX cannot express"), (Undecided(), "torch.export cannot take")], ids=["operation", "decision"])
def test_what_cannot_be_exported_is_named(model, word, capfd):
    with pytest.raises(fv.FoveateError, match=word) as caught:
        load_engine(model, "onnxruntime", "fp32", torch.randn(4, 3, 2, 2))
    assert 'backend="torch"' in caught.value.do and len(str(caught.value)) < 800
    assert capfd.readouterr() == ("", "")


def test_what_is_no_graph_is_named():
    with pytest.raises(fv.FoveateError, match="ONNX Runtime cannot load"):
        onnx_backend.onnx_runner(b"no graph", 1)


def test_half_precision_is_refused():
    with pytest.raises(fv.FoveateError, match="bf16"):
        load_engine(Narrow(), "onnxruntime", "bf16", torch.randn(4, 3, 2, 2))
