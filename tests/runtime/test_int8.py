"""runtime/int8.py: the backbone computes in 8 bits, what decides does not, and the answers stay those of the model."""

import copy

import pytest
import tiny
import torch

import foveate as fv
from foveate.runtime import int8, load_engine, loading
from foveate.runtime.decisions import Deciding
from foveate.runtime.int8 import of_backbone, quantised_graph

openvino = pytest.importorskip("openvino")
nncf = pytest.importorskip("nncf")
from foveate.runtime.openvino_backend import fast_rest, only_first, openvino_graph  # noqa: E402

IMAGES = tiny.images("deit", 8)
PLANS = {
    "topk": fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))]),
    "argmax": fv.Plan([fv.SPViT(after=(2,), keep=(0.5,), select="argmax")]),
}


@pytest.fixture(scope="module")
def graphs():
    """The top-k model, its graph in float32, and that graph in 8 bits."""
    model = tiny.adapted(PLANS["topk"], "deit").eval()
    graph = openvino_graph(Deciding(model), IMAGES[:2], single=False)
    return model, graph, quantised_graph(graph, IMAGES, ["spvit"])


@pytest.fixture(scope="module")
def engines(graphs):
    making = loading.maker_of(graphs[0], IMAGES)
    vars(making).update(_graph=graphs[1], _eight_bit_graph=graphs[2])  # once is enough
    argmax = load_engine(tiny.adapted(PLANS["argmax"], "deit").eval(), "openvino", "int8", IMAGES[:4])
    return {"topk": making.engine("openvino", "int8"), "argmax": argmax}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("__module.blocks.0.attn.qkv/aten::linear/MatMul", True),
        ("__module.model.blocks.0.attn.qkv/aten::linear/MatMul", True),
        ("__module.head/aten::linear/MatMul", True),
        ("__module.spvit.selectors.3.feature/aten::baddbmm/MatMul", False),
        ("__module.model.spvit.selectors.3/aten::matmul/MatMul_1", False),
        ("__module/aten::matmul/MatMul", False),
        ("aten::matmul/MatMul_2", False),  # a package token, or linear attention
    ],
)
def test_what_belongs_to_the_backbone_is_told_by_its_module(name, expected):
    assert of_backbone(name, ["spvit", "pivot"]) is expected


def products(graph):
    """Layers of the compiled graph that multiply matrices: the modules they come from -> the type of numbers they read."""
    compiled = openvino.Core().compile_model(only_first(graph), "CPU", {"INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[fast_rest()]})
    text = lambda info: info if isinstance(info, str) else info.astype(str)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return {text(info["originalLayersNames"]): text(info["runtimePrecision"]) for info in infos
            if text(info["layerType"]) in ("FullyConnected", "FullyConnectedQuantizedLegacy", "MatMul", "Convolution")}


def test_the_backbone_runs_in_integers_and_the_selectors_do_not(graphs):
    ran = products(graphs[2])
    layers = [kind for name, kind in ran.items() if any(f".{layer}/aten::linear" in name for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))]
    assert len(layers) == 4 * 4 and set(layers) <= {"u8", "i8"}
    selectors = [kind for name, kind in ran.items() if ".spvit." in name]
    assert len(selectors) >= 2 * 5 and not {"u8", "i8"} & set(selectors)
    assert not {"u8", "i8"} & set(products(graphs[1]).values())


def test_spared_products_have_the_weights_they_had(graphs):
    model, graph, eight = graphs
    ours = {node.get_friendly_name(): node for node in eight.get_ordered_ops()}
    names = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul" and not of_backbone(node.get_friendly_name(), ["spvit"])]
    assert len(names) >= 10
    for name in names:
        sources = [side.get_source_output().get_node() for side in ours[name].inputs()]
        assert not any("smooth_quant" in node.get_friendly_name() or node.get_type_name() == "FakeQuantize" for node in sources), name
    assert not any(node.get_type_name() == "FakeQuantize" for node in graph.get_ordered_ops())  # the one given is left as it was


@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_batch_runs_and_answers_like_the_model(engines, count):
    model, images = tiny.adapted(PLANS["topk"], "deit").eval(), IMAGES[:count]
    with torch.no_grad():
        expected = model(images)
    assert engines["topk"].max_batch is None
    assert ((engines["topk"](images) - expected).abs().amax(1) / expected.abs().max()).median() < 0.05


def test_per_image_counts_run_image_by_image(engines):
    model = tiny.adapted(PLANS["argmax"], "deit").eval()
    with torch.no_grad():
        expected, trace = model.traced(IMAGES)
    assert len(set(trace.tokens[0])) > 1 and engines["argmax"].max_batch == 1
    logits = torch.cat([engines["argmax"](image[None]) for image in IMAGES])
    assert ((logits - expected).abs().amax(1) / expected.abs().max()).median() < 0.05


def test_the_overlap_of_kept_patches_is_reported_for_every_stage(engines):
    assert len(engines["argmax"].agreement.overlap) == 1
    for engine in (engines["topk"], load_engine(tiny.adapted(PLANS["topk"], "deit").eval(), "torch", "bf16", IMAGES)):
        assert len(engine.agreement.overlap) == 2 and all(0.5 < share <= 1 for share in engine.agreement.overlap)
        assert f"{engine.agreement.overlap[0]:.3f}" in str(engine)


def test_a_model_whose_selectors_differ_keeps_other_patches(engines):
    """The overlap is measured, not assumed: against a model that decides otherwise it is low."""
    model = tiny.adapted(PLANS["topk"], "deit").eval()
    making = loading.maker_of(model, IMAGES)
    engine = load_engine(model, "torch", "bf16", IMAGES)
    making.model = copy.deepcopy(model)
    with torch.no_grad():
        for selector in making.model.spvit.selectors.values():
            selector.score.weight.neg_()
            selector.score.bias.neg_()
    assert max(making._overlap(engine)) < 0.8


def test_the_ranges_come_from_the_calibration_images(monkeypatch):
    seen = []
    monkeypatch.setattr(loading.Maker, "_graph", "graph")
    monkeypatch.setattr("foveate.runtime.maker.quantised_graph", lambda graph, images, methods: seen.append((graph, len(images), methods)))
    for calibration, count in ((None, 8), (IMAGES[:3], 3)):
        making = loading.maker_of(tiny.adapted(PLANS["topk"], "deit"), IMAGES)
        making.calibration = calibration
        making._eight_bit_graph
        assert seen[-1] == ("graph", count, ["spvit"])


def test_auto_quantises_only_where_there_are_images_to_calibrate_on(monkeypatch):
    model = tiny.adapted(PLANS["topk"], "deit")
    without, passed_over = loading._candidates(model, "openvino", "auto", real=False)
    assert ("openvino", "int8") not in without and "calibrate" in passed_over["openvino int8"]
    assert ("openvino", "int8") in loading._candidates(model, "openvino", "auto", real=True)[0]
    assert loading._candidates(model, "auto", "int8", real=True)[0] == [("openvino", "int8")]


def test_synthetic_ranges_are_named(monkeypatch):
    monkeypatch.setattr(loading.Maker, "engine", lambda self, backend, precision: loading.Engine(lambda x: x, backend, precision))
    with pytest.warns(UserWarning, match="synthetic"):
        engine = load_engine(tiny.adapted(PLANS["topk"], "deit"), "openvino", "int8")
    assert "synthetic" in engine.passed_over["calibration"]


def test_without_nncf_the_command_that_installs_it_is_named(monkeypatch, graphs):
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(fv.FoveateError, match="pip install 'foveate\\[openvino\\]'"):
        quantised_graph(graphs[1], IMAGES)


def test_what_cannot_be_quantised_is_refused(monkeypatch, graphs):
    def broken(*_, **__):
        raise RuntimeError("no such shape")

    monkeypatch.setattr(nncf, "quantize", broken)
    with pytest.raises(fv.FoveateError, match="cannot quantise.*no such shape"):
        quantised_graph(graphs[1], IMAGES, ["spvit"])
