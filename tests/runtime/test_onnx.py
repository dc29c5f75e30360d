"""ONNX Runtime and torch.export: what they make of every method equals eager, in batches it was not traced with."""

import copy
import functools

import pytest
import tiny
import torch
from torch import nn

import foveate as fv
from foveate.methods import METHODS
from foveate.runtime import installed_backends, load_engine, onnx_backend
from foveate.runtime.exported import exported_program
from foveate.runtime.maker import images_at_once

pytestmark = pytest.mark.skipif("onnxruntime" not in installed_backends(), reason="onnxruntime, onnx or onnxscript is not installed")

# An export takes seconds, so that several methods share a model: each has its own blocks in the graph.
PLANS = {
    "kernels+topk": ("deit", [fv.Linformer(rank=4, blocks=(1,)), fv.Performer(blocks=(2,)), fv.LinearTransformer(blocks=(3,)), fv.Efficient(blocks=(4,)),
                              fv.SPViT(after=(1, 3), keep=(0.7, 0.4))]),
    "branches+argmax": ("deit", [fv.ViTALiTy(mode="lowrank+sparse", threshold=0.1, blocks=(1,)), fv.ViTCoD(blocks=(2,)), fv.PIVOT(skip=(3,)),
                                 fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")]),
    "structure+random+vitality": ("siglip", [fv.Structure(keep=0.7), fv.Random(after=(2,), keep=(0.5,)), fv.ViTALiTy(blocks=(1, 4))]),
    "evit": ("deit", [fv.EViT(after=(1, 3), keep=(0.7, 0.4))]),
    "tome": ("deit", [fv.ToMe(r=3)]),
    "ats": ("deit", [fv.ATS(after=(2,), tokens=0.6)]),
    "iret": ("iret", [fv.IRET(threshold=0.05)]),
    "iret without thresholds": ("iret", [fv.IRET(threshold=0.0)]),
    "argmax, rotary": ("eva02", [fv.SPViT(after=(2,), keep=(0.5,), select="argmax")]),
}
STAGED = {"earlyexit"}  # one graph a segment: see test_staged.py


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@functools.cache
def exported(name):
    """The model, its graph of torch.export, and whether that takes one image."""
    key, methods = PLANS[name]
    model = tiny.adapted(fv.Plan(methods), key).eval()
    single = images_at_once(model, tiny.images(key, 6)) == 1
    return model, exported_program(model, tiny.images(key, 6).flip(-1), 1 if single else None), single


def held_to_eager(run, name):
    key, model, single = PLANS[name][0], exported(name)[0], exported(name)[2]
    images = tiny.images(key, 7)
    with torch.no_grad():
        expected, trace = model.traced(images)
        same(torch.cat([run(image[None]) for image in images]), expected)
        if single:
            assert len({counts for counts in zip(*trace.block_tokens)}) > 1, "all images keep equally many tokens: this test shows nothing"
        else:
            for count in (7, 3):
                same(run(images[:count]), expected[:count])


def test_every_method_is_exported():
    assert {method.name for _, methods in PLANS.values() for method in methods} == set(METHODS) - STAGED


@pytest.mark.parametrize("name", PLANS)
def test_torch_export_equals_eager(name):
    held_to_eager(exported(name)[1].module(), name)


@pytest.mark.parametrize("name", PLANS)
def test_onnx_runtime_equals_eager(name, monkeypatch):
    model, program, single = exported(name)
    monkeypatch.setattr(onnx_backend, "exported_program", lambda *_: program)
    graph = onnx_backend.onnx_graph(model, torch.empty(0), single)
    held_to_eager(onnx_backend.onnx_runner(graph, 1), name)
    assert [graph.graph.input[0].name, graph.graph.output[0].name] == ["images", "logits"]
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_value if single else shape[0].dim_param) == (1 if single else "batch")
    assert b"site-packages" not in graph.SerializeToString(), "stack traces with paths of this machine"
