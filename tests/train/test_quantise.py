"""8-bit training: its levels and gradients, layers that come and go, exact resumption, run folders, and integers in OpenVINO."""

import copy
import json
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import foveate as fv
from foveate.errors import FoveateError
from foveate.nn.fake_quantise import TOP, frozen, learned
from foveate.quantised import is_range, observe, quantisable, quantise, quantised, unquantise
from foveate.runtime import load_engine
from foveate.train.data import load_data
from foveate.train.fit import DataSets, fit
from foveate.train.quantise import calibration_batches
from foveate.train.recipe import RECIPES, Recipe
from tests import tiny

RECIPE = Recipe(epochs=2, batch_size=16, lr=2e-3, augmentation="none", precision="32-true", kl_weight=0.0, quantise="int8")
PLAN = fv.Plan([fv.PIVOT(skip=(2,))])
RANGES = [(-3.0, 5.0), (0.0, 4.0), (-0.17, 4.0), (0.5, 2.0), (-5.0, 4.0), (-0.001, 6.0), (-2.3, 4.6)]


def eight_bit(plan: fv.Plan = PLAN, key: str = "deit") -> fv.AdaptiveModel:
    model = tiny.adapted(plan, key).eval()
    quantise(model, observe(model, tiny.images(key, 32).split(16)))
    return model


def digits(depth: int = 3) -> VisionTransformer:
    torch.manual_seed(0)
    values = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": depth, "num_heads": 2, "num_classes": 10}
    return timm.create_model("deit_tiny_patch16_224", **values)


def trained(model, out, recipe: Recipe = RECIPE, **options):
    train = load_data("digits")
    data = DataSets(train.subset(range(50)), train.subset(range(100, 120)))
    return fit(model, out, data, recipe, device="cpu", progress=False, **options)


@pytest.mark.parametrize("low, span", RANGES)
def test_values_are_on_256_levels_of_which_one_is_zero(low, span):
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) * 3
    x[0] = 0
    low, span = torch.tensor([low]), torch.tensor([span])
    y = frozen(x, low, span)
    assert torch.equal(y, learned(x, low, span)) and (y[0] == 0).all()
    levels = y.unique()
    assert len(levels) <= TOP + 1 and len(levels) > 100
    step = levels.diff().min()
    assert (levels.diff() / step - (levels.diff() / step).round()).abs().max() < 1e-3
    inside = (x >= y.min()) & (x <= y.max())
    assert (x - y)[inside].abs().max() <= step * 0.5001
    assert y.min() >= min(0, float(low)) - 1.01 * step and y.max() <= max(0, float(low + span)) + 1.01 * step


@pytest.mark.parametrize("low, span", RANGES)
def test_values_are_those_of_nncfs_quantisers(low, span):
    layers = pytest.importorskip("nncf.torch.quantization.layers")
    schemes = pytest.importorskip("nncf.common.quantization.structs").QuantizationScheme
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * 2
    theirs = layers.AsymmetricQuantizer(layers.PTQuantizerSpec(8, schemes.ASYMMETRIC, None, False, False, (1,), False))
    theirs.input_low.data.fill_(low), theirs.input_range.data.fill_(span)
    bottom, top, scale, zero = theirs.get_parameters_for_torch_fq()
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, bottom, top)
    assert (frozen(x, torch.tensor([low]), torch.tensor([span])) - expected).abs().max() < 1e-5
    weights = layers.SymmetricQuantizer(layers.PTQuantizerSpec(8, schemes.SYMMETRIC, True, False, False, (40, 1), False))
    weights.scale.data.copy_(x.abs().amax(1, keepdim=True) * 0.8)
    bottom, top, scale, zero = weights.get_parameters_for_torch_fq()
    linear = torch.nn.Linear(16, 40)
    linear.weight.data.copy_(x)
    quantise(linear_in := torch.nn.Sequential(linear), {"0": (-1.0, 1.0)})
    linear_in[0].weight_quantiser.scale.data.mul_(0.8)
    assert (linear_in[0].weight_quantiser(x) - torch.fake_quantize_per_channel_affine(x, scale, zero, 0, bottom, top)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1,), (6, 1)])
def test_gradients_are_those_of_a_loop_over_the_elements(shape):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(6, 20, generator=generator) * 2).requires_grad_()
    low = (-1 - torch.rand(shape, generator=generator)).requires_grad_()
    span = (2 + torch.rand(shape, generator=generator)).requires_grad_()
    weight = torch.randn(6, 20, generator=generator)
    y = learned(x, low, span)
    (y * weight).sum().backward()
    by_x, by_low, by_span = torch.zeros(6, 20), torch.zeros(6), torch.zeros(6)
    wide = lambda t: t.detach().flatten().expand(6)
    for i in range(6):
        ends = frozen(torch.tensor([[-100.0], [100.0]]), wide(low)[i : i + 1], wide(span)[i : i + 1]).flatten()
        step = (ends[1] - ends[0]) / TOP
        for j in range(20):
            value, g = x[i, j].item(), weight[i, j]
            if value > ends[1] + step / 2:
                by_low[i] += g
                by_span[i] += g
            elif value < ends[0] - step / 2:
                by_low[i] += g
            else:
                by_x[i, j] = g
                by_span[i] += g * (y[i, j].item() - value) / (ends[1] - ends[0])
    summed = (lambda t: t.sum().view(1)) if shape == (1,) else (lambda t: t[:, None])
    assert torch.allclose(x.grad, by_x) and (by_x == 0).any()
    assert torch.allclose(low.grad, summed(by_low), atol=1e-5) and torch.allclose(span.grad, summed(by_span), atol=1e-4)


def test_bfloat16_is_rounded_on_levels_of_float32():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 2
    low, span = torch.tensor([-2.0]), torch.tensor([4.3])
    assert torch.equal(learned(x, low, span), frozen(x.float(), low, span).to(torch.bfloat16))
    assert frozen(x, low, span).dtype == torch.bfloat16


def test_layers_come_and_go_under_the_names_of_the_base():
    base = tiny.adapted(PLAN).eval()
    images = tiny.images()
    before, logits = base.state_dict(), base(images)
    model = eight_bit()
    assert set(quantised(model)) == set(quantisable(base)) and not quantisable(model)
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in before.items())
    added = set(own) - set(before)
    assert all(map(is_range, added)) and len(added) == 3 * len(quantised(model)) and not any(map(is_range, before))
    assert "blocks.1.attn.qkv.weight" not in own  # a skipped attention has no ranges either
    error = (model(images) - logits).abs().max() / logits.abs().max()
    assert 1e-4 < error < 0.05
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), model(images))
    again = fv.replan(model, PLAN)
    assert set(quantised(again)) == set(quantised(model)) and torch.equal(again(images), model(images))
    unquantise(model)
    assert model.state_dict().keys() == before.keys() and torch.equal(model(images), logits)


def test_restoring_gives_the_backbone_in_floating_point():
    model = eight_bit()
    plain = fv.restore(model)
    assert not quantised(plain) and plain.state_dict().keys() == tiny.model().state_dict().keys()
    assert quantised(model)


def test_parts_of_methods_stay_in_floating_point():
    model = eight_bit(fv.Plan([fv.SPViT(after=(1, 2), keep=(0.7, 0.5), select="topk")]))
    assert quantised(model) and not any(name.startswith("spvit") for name in quantised(model))
    images = tiny.images(count=6)
    logits, trace = model.traced(images)
    assert (model.masked(images, trace) - logits).abs().max() < 0.05 * logits.abs().max()


def test_layers_whose_weights_are_read_past_them_stay_in_floating_point():
    model = tiny.adapted(fv.Plan(), "eva02").eval()
    found = observe(model, [tiny.images("eva02")])
    left = set(quantisable(model)) - set(found)
    assert left == {f"blocks.{number}.attn.qkv" for number in range(model.card.depth)}


def test_observed_ranges_are_means_over_the_batches_and_leave_the_model_alone():
    model = tiny.adapted(PLAN).train()
    model.blocks[0].eval()
    before = copy.deepcopy(model.state_dict())
    batches = [tiny.images(count=4, seed=seed) for seed in (1, 2, 3)]
    low, high = observe(model, batches)["patch_embed.proj"]
    assert low == pytest.approx(sum(float(b.min()) for b in batches) / 3) and high == pytest.approx(sum(float(b.max()) for b in batches) / 3)
    assert model.training and model.anatomy.model.training and not model.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize("batches, words", [([], "no images"), ([tiny.images() * float("nan")], "NaN")])
def test_images_that_give_no_range_are_refused(batches, words):
    with pytest.raises(FoveateError, match=words):
        observe(tiny.adapted(PLAN), batches)


def test_a_name_that_is_no_layer_is_refused():
    with pytest.raises(FoveateError, match="blocks.9.attn.qkv"):
        quantise(tiny.adapted(PLAN), {"blocks.9.attn.qkv": (-1.0, 1.0)})


def test_ranges_stay_as_they_are_in_evaluation_and_one_image_equals_a_batch():
    model = eight_bit()
    before = copy.deepcopy(model.state_dict())
    images = tiny.images(count=6)
    logits = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    # A value that lies between two levels may be rounded to either.
    assert (logits - alone).abs().amax(1).median() < 1e-5 and (logits - alone).abs().max() < 0.05 * logits.abs().max()
    loud = model(images * 100)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.isfinite(loud).all()


def test_training_moves_weights_and_ranges_and_resumes_exactly(tmp_path):
    base, results = digits(), []
    for name, limits in (("whole", (None,)), ("parts", (2, None))):
        for limit in limits:
            model = fv.adapt(base, PLAN)
            trained(model, tmp_path / name, teacher=fv.adapt(base, fv.Plan()), resume=True, limit_steps=limit)
        results.append(model.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    start = fv.adapt(base, PLAN).eval()
    quantise(start, observe(start, calibration_batches(load_data("digits").subset(range(50)), RECIPE.seed)))
    moved = {key: float((results[0][key] - value).abs().max()) for key, value in start.state_dict().items()}
    # The lower end of a range has a gradient only where a value lies below it.
    assert all(amount > 0 for key, amount in moved.items() if key.endswith(("weight", ".span", ".scale")))
    assert sum(moved[key] > 0 for key in moved if key.endswith("input_quantiser.low")) > len(quantised(start)) / 2
    assert "distillation" in json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])


def test_a_run_folder_holds_the_8_bit_model(tmp_path):
    model = fv.adapt(digits(), PLAN)
    trained(model, tmp_path, limit_steps=1)
    loaded, images = fv.load(tmp_path), torch.randn(3, 3, 8, 8)
    assert set(quantised(loaded)) == set(quantised(model)) and loaded.plan == PLAN
    assert torch.equal(loaded(images), model(images))
    assert json.loads((tmp_path / "backbone.json").read_text())["quantise"] == "int8"
    fv.save(loaded, tmp_path / "again")
    assert torch.equal(fv.load(tmp_path / "again")(images), model(images))
    unquantise(loaded)
    fv.save(loaded, tmp_path / "again")
    assert not quantised(fv.load(tmp_path / "again")) and "quantise" not in json.loads((tmp_path / "again" / "backbone.json").read_text())


def test_a_dense_base_can_be_trained_in_8_bits_too(tmp_path):
    model = digits(depth=2)
    trained(model, tmp_path, limit_steps=1)
    images = torch.randn(3, 3, 8, 8)
    assert quantised(model) and torch.equal(fv.load(tmp_path)(images), model(images))


def test_openvino_runs_the_layers_in_integers():
    openvino = pytest.importorskip("openvino")
    from foveate.runtime.openvino_backend import openvino_graph

    model = eight_bit()
    images = tiny.images(count=16)
    compiled = openvino.Core().compile_model(openvino_graph(model, images[:2], single=False), "CPU")
    text = lambda info: info if isinstance(info, str) else info.astype(str)
    ran = [(text(op.get_rt_info()["layerType"]), text(op.get_rt_info()["runtimePrecision"])) for op in compiled.get_runtime_model().get_ops()]
    ran = [precision for kind, precision in ran if kind in ("FullyConnected", "Convolution")]
    assert len(ran) == len(quantised(model)) and set(ran) <= {"u8", "i8"}
    engine = load_engine(model, "openvino", "int8", images)
    assert engine.name == "openvino int8" and engine.agreement.typical < 1e-5 and engine.agreement.worst < 0.05
    error = (engine(images) - model(images)).abs().amax(1)
    assert error.median() < 1e-5 * model(images).abs().max()
    assert load_engine(model, "openvino", "auto", images).precision == "int8"


@pytest.mark.parametrize("plan, backend, precision", [(fv.Plan(), "torch", "int8"), (None, "openvino", "fp32"), (None, "torch", "int8")])
def test_precisions_that_a_model_was_not_trained_for_are_refused(plan, backend, precision):
    pytest.importorskip("openvino")
    model = eight_bit() if plan is None else tiny.adapted(plan)
    with pytest.raises(FoveateError, match=f"precision='{precision}' in {backend}"):
        load_engine(model, backend, precision, tiny.images())


def test_the_recipes_of_pivot():
    paper, nano = RECIPES["pivot"], RECIPES["pivot-nano"]
    assert paper.epochs == 30 and nano.epochs == 3
    for recipe in (paper, nano):
        assert recipe.quantise == "int8" and recipe.distill_weight == 0.5 and recipe.kl_weight == recipe.label_smoothing == recipe.mixup == 0
    with pytest.raises(FoveateError, match="quantise='int4'"):
        Recipe(quantise="int4")
    assert Recipe.from_json('{"epochs": 1}').quantise == "none"
