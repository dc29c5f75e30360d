"""runtime: engines agree with the model, take what they say they take, and say clearly what they do not."""

from importlib.util import find_spec

import pytest
import tiny
import torch
from torch import nn

import foveate as fv
from foveate.runtime import Engine, choice, installed_backends, load, load_engine, loading, maker
from foveate.runtime.openvino_backend import STATIC_GRAPHS

needs_openvino = pytest.mark.skipif("openvino" not in installed_backends(), reason="openvino is not installed")
TOPK = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4))])
ARGMAX = fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")])


class Narrow(nn.Module):
    """A classifier small enough to convert in a moment; its plan can be set to any object."""

    def __init__(self, plan=None):
        super().__init__()
        if plan is not None:
            self.plan = plan
        self.linear = nn.Linear(12, 5)

    def forward(self, images):
        return self.linear(images.flatten(1))


class Brightest(Narrow):
    """Keeps another number of values in each image: the mean of those above the image's mean (one image at a time)."""

    def forward(self, images):
        values = images.flatten()
        kept = values[(values > values.mean()).nonzero()[:, 0]]
        return self.linear.weight.sum(1)[None] * kept.mean() + kept.shape[0]


class Each:
    """A plan whose cost differs from image to image."""

    data_dependent, methods = True, ("any",)


@pytest.fixture
def images():
    return torch.randn(6, 3, 2, 2)


@pytest.fixture
def adapted():
    return tiny.adapted(TOPK, "deit").eval()


def refused(word, call, *arguments, **settings):
    with pytest.raises(fv.FoveateError) as caught:
        call(*arguments, **settings)
    error = caught.value
    assert word in str(error) and error.given and error.allowed and error.do, str(error)
    return error


def test_backends_here():
    assert installed_backends()[:2] == ("torch", "torch-compile")


@pytest.mark.parametrize("plan", [fv.Plan(), TOPK, ARGMAX], ids=["dense", "topk", "argmax"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_engines_answer_as_the_model_does(plan, precision):
    model = tiny.adapted(plan, "deit").eval()
    images = tiny.images("deit", 6)
    engine = load_engine(model, "torch", precision, images)
    assert (engine.name, engine.max_batch) == (f"torch {precision}", None)
    logits = engine(images)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    with torch.no_grad():
        expected = model(images)
    if precision == "fp32":
        assert torch.equal(logits, expected) and engine.agreement.worst == 0
    else:
        assert 0 < (logits - expected).abs().max() < 0.3 * expected.abs().max()
    assert next(model.parameters()).dtype == torch.float32


def test_a_model_in_training_is_left_so_and_later_changes_do_not_show(images):
    model = Narrow().train()
    engine = load_engine(model, "torch", "fp32", images)
    before = engine(images)
    with torch.no_grad():
        model.linear.weight.zero_()
    assert model.training and torch.equal(engine(images), before)


@needs_openvino
def test_openvino_runs_any_batch_of_a_topk_plan(adapted):
    engine = load_engine(adapted, "openvino", "fp32", tiny.images("deit", 6))
    assert (engine.name, engine.max_batch) == ("openvino fp32", None)
    assert engine.agreement.worst < 1e-5 and engine.agreement.images == 7
    with torch.no_grad():
        for count in (1, 2, 5):
            images = tiny.images("deit", count, seed=count)
            torch.testing.assert_close(engine(images), adapted(images), atol=1e-4, rtol=1e-4)


@needs_openvino
@pytest.mark.parametrize("method", [fv.EViT(after=(1, 3), keep=(0.7, 0.4)), fv.ToMe(r=3)], ids=["evit", "tome"])
def test_openvino_runs_any_batch_of_the_peers(method):
    model = tiny.adapted(fv.Plan([method]), "deit").eval()
    engine = load_engine(model, "openvino", "fp32", tiny.images("deit", 6))
    assert engine.max_batch is None and engine.agreement.worst < 1e-5
    with torch.no_grad():
        for count in (1, 5):
            images = tiny.images("deit", count, seed=count)
            torch.testing.assert_close(engine(images), model(images), atol=1e-4, rtol=1e-4)


@needs_openvino
def test_openvino_keeps_one_graph_for_all_batch_sizes_beyond_the_first(images):
    model = Narrow().eval()
    engine = load_engine(model, "openvino", "fp32", images)
    for count in (*range(1, STATIC_GRAPHS + 4), 1, STATIC_GRAPHS + 3):
        batch = torch.randn(count, 3, 2, 2)
        torch.testing.assert_close(engine(batch), model(batch).detach(), atol=1e-5, rtol=1e-5)


@needs_openvino
def test_answers_are_not_overwritten_by_the_next_call(images):
    engine = load_engine(Narrow(), "openvino", "fp32", images)
    first = engine(images)
    kept = first.clone()
    engine(-images)
    assert torch.equal(first, kept)


@needs_openvino
def test_per_image_counts_run_one_image_at_a_time_in_openvino(images):
    model = Brightest(Each()).eval()
    engine = load_engine(model, "openvino", "fp32", images[:1])
    assert engine.max_batch == 1
    for image in images:
        torch.testing.assert_close(engine(image[None]), model(image[None]).detach(), atol=1e-4, rtol=1e-4)
    error = refused("6 images at once", engine, images)
    assert "openvino" in error.given and "torch" in error.do


@needs_openvino
def test_openvino_runs_an_argmax_plan_image_by_image():
    model, images = tiny.adapted(ARGMAX, "deit").eval(), tiny.images("deit", 8)
    with torch.no_grad():
        expected, trace = model.traced(images)
    assert len(set(trace.tokens[0])) > 1  # the graph was traced with one image and must be right for the others
    engine = load_engine(model, "openvino", "fp32", images)
    assert engine.max_batch == 1 and engine.agreement.worst < 1e-5
    torch.testing.assert_close(torch.cat([engine(image[None]) for image in images]), expected, atol=1e-4, rtol=1e-4)
    refused("8 images at once", engine, images)


@needs_openvino
def test_where_graphs_of_fixed_shape_are_wrong_dynamic_ones_run():
    model, images = tiny.adapted(fv.Plan(), "swin").eval(), tiny.images("swin", 3)
    engine = load_engine(model, "openvino", "fp32", images)
    assert engine.max_batch is None and engine.agreement.worst < 1e-5
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(engine(images[:1].expand(count, -1, -1, -1)), model(images[:1]).expand(count, -1), atol=1e-4, rtol=1e-4)


@needs_openvino
def test_fixed_counts_that_merging_makes_uneven_run_one_image_at_a_time():
    model, images = tiny.adapted(TOPK, "swin").eval(), tiny.images("swin", 3)
    engine = load_engine(model, "openvino", "fp32", images)
    assert not model.plan.data_dependent and engine.max_batch == 1 and engine.agreement.worst < 1e-5
    refused("3 images at once", engine, images)


@needs_openvino
def test_a_graph_that_froze_a_decision_is_refused_with_its_figure(images):
    class Frozen(Narrow):
        def forward(self, images):
            return self.linear(images.flatten(1)) * float(images[0, 0, 0, 0])

    error = refused("not those of the model", load_engine, Frozen(), "openvino", "fp32", images)
    assert "openvino fp32" in error.given and "differ by" in error.given


@needs_openvino
def test_a_wrong_graph_is_found_before_its_rounding_is_excused(images):
    class Slightly(Narrow):
        def forward(self, images):
            return self.linear(images.flatten(1)) * (1 + 0.05 * float(images[0, 0, 0, 0] > images.median()))

    images = torch.ones(1, 3, 2, 2)
    images[..., 1] = -1  # the mirror image, which the graph is traced with, falls on the other side
    refused("openvino fp32", load_engine, Slightly(), "openvino", "bf16", images)


@needs_openvino
def test_a_graph_with_a_frozen_batch_size_is_refused(images):
    class Batch(Narrow):
        def forward(self, images):
            return torch.cat([self.linear(images[i].flatten()[None]) for i in range(len(images))])

    refused("openvino fp32", load_engine, Batch(), "openvino", "fp32", images)


@needs_openvino
def test_what_openvino_cannot_convert_is_named_and_tried_once(images, monkeypatch):
    class Foreign(Narrow):
        def forward(self, images):
            return self.linear(torch.special.bessel_j0(images).flatten(1))

    tries = []
    convert = maker.openvino_graph
    monkeypatch.setattr(maker, "openvino_graph", lambda *a, **k: (tries.append(1), convert(*a, **k))[1])
    error = refused("bessel_j0", load_engine, Foreign(), "openvino", "fp32", images)
    assert "cannot convert" in error.given and 'backend="torch"' in error.do
    tries.clear()
    engine = load_engine(Foreign(), "auto", "auto", images)
    assert engine.backend == "torch" and len(tries) == 1
    assert engine.precision == "fp32" and "torch bf16 cannot run" in engine.passed_over["torch bf16"]
    assert "bessel_j0" in engine.passed_over["openvino fp32"] and "bessel_j0" in engine.passed_over["openvino bf16"]


@needs_openvino
def test_a_precision_that_openvino_ignores_is_refused(images):
    import openvino

    from foveate.runtime import openvino_backend

    graph = openvino_backend.openvino_graph(Narrow(), images, single=False)
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    openvino_backend._check_precision(compiled, "fp32")
    error = refused("'bf16' in OpenVINO on a CPU", openvino_backend._check_precision, compiled, "bf16")
    assert 'precision="fp32"' in error.do


def test_auto_takes_the_fastest_and_says_what_it_passed_over(images, monkeypatch):
    engines = {}

    def made(self, backend, precision):
        if precision != "fp32":
            raise fv.FoveateError(f"{precision} here", "fp32", "choose fp32")
        engines[backend] = Engine(lambda x: clock.pass_by(backend) or x, backend, precision)
        return engines[backend]

    class Clock:
        now = 0.0

        def pass_by(self, backend):
            self.now += 3.0 if backend == "torch" else 1.0

        def perf_counter(self):
            return self.now

        def strftime(self, form):
            return "2026-11-21"

    clock = Clock()
    monkeypatch.setattr(maker.Maker, "engine", made)
    monkeypatch.setattr(choice, "time", clock)
    monkeypatch.setattr(loading, "installed_backends", lambda: ("torch", "torch-compile", "openvino"))
    best = load_engine(Narrow(), example=images)
    assert best is engines["openvino"]
    refused = {"torch bf16": "bf16 here", "openvino bf16": "bf16 here"} | ({"openvino int8": "int8 here"} if find_spec("nncf") else {})
    assert best.passed_over == {"torch fp32": "500.00 ms an image against 166.67"} | refused


def test_auto_never_picks_what_cannot_take_the_batch(images, monkeypatch):
    def made(self, backend, precision):
        return Engine(lambda x: x, backend, precision, max_batch=1 if backend == "openvino" else None)

    monkeypatch.setattr(maker.Maker, "engine", made)
    monkeypatch.setattr(loading, "installed_backends", lambda: ("torch", "torch-compile", "openvino"))
    best = load_engine(Narrow(), precision="fp32", example=images)
    assert best.backend == "torch" and "6 were asked for" in best.passed_over["openvino fp32"]
    assert load_engine(Narrow(), "openvino", "auto", images).max_batch == 1


def test_a_run_folder_becomes_an_engine_without_example_images(adapted, tmp_path):
    fv.save(adapted, tmp_path / "run")
    engine = load(tmp_path / "run", "torch", "fp32")
    assert engine.agreement.images == 17
    images = tiny.images("deit", 4)
    with torch.no_grad():
        assert torch.equal(engine(images), adapted(images))
    assert "torch fp32" in repr(engine)


def test_synthetic_images_are_smooth_normalised_and_repeatable(adapted):
    one, other = loading.synthetic_images(adapted.card), loading.synthetic_images(adapted.card)
    assert torch.equal(one, other) and one.shape == (16, 3, 32, 32)
    assert abs(one.mean()) < 1e-5 and abs(one.std() - 1) < 1e-5
    assert (one[..., 1:] - one[..., :-1]).std() < 0.5


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"backend": "tensorrt"}, "'tensorrt'"),
        ({"backend": "torch", "precision": "int8"}, "'int8'"),
        ({"batch": 0}, "batch=0"),
        ({"labels": torch.zeros(2)}, "2 labels for 6"),
        ({"example": None}, "no example images"),
        ({"example": torch.zeros(3, 2, 2)}, "[3, 2, 2]"),
        ({"example": torch.zeros(0, 3, 2, 2)}, "[0, 3, 2, 2]"),
    ],
)
def test_what_cannot_be_loaded_is_refused(settings, word, images):
    refused(word, load_engine, Narrow(), **({"example": images} | settings))


def test_a_backend_that_is_not_installed_names_the_command(images, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert "openvino" not in installed_backends()
    error = refused("not installed", load_engine, Narrow(), "openvino", "fp32", images)
    assert "pip install" in error.do
    assert load_engine(Narrow(), "auto", "fp32", images).backend == "torch"


def test_an_engine_refuses_images_without_a_batch(images):
    assert "images[None]" in refused("[3, 2, 2]", load_engine(Narrow(), "torch", "fp32", images), images[0]).do
