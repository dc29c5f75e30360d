"""IRET's room: what is forgotten against a naive model, what stays in training, sub-bands, settings, costs and pictures."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from command import answer
from foveate.cli import main
from foveate.methods.iret.cost import parameters_used
from foveate.nn.lifting import lifting_losses
from foveate.presets import presets
from foveate.train.preprocessing import Preprocessing
from naive.forget import iret as naive_iret

D = torch.float64
BOTH = (0.05, 0.085)
"""Thresholds of the tiny model's two layers that drop some patches before each, differently many from image to image."""


def refused(*words: str):
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def forgetting(threshold=BOTH, *others, key: str = "iret", dtype=torch.float32, **settings) -> fv.AdaptiveModel:
    return tiny.adapted(fv.Plan([fv.IRET(threshold=threshold, **settings), *others]), key, dtype)


# against the naive model


@pytest.mark.parametrize("threshold, settings, skipped", [
    (BOTH, {}, ()), (0.055, dict(samples=1), ()), ((0.0, 0.085), dict(focus=False), ()), (0.9, {}, ()), (BOTH, {}, (2,)), (BOTH, dict(samples=0), (2, 3)),
], ids=["all", "one-band", "no-focus", "everything", "skip-2", "skip-2-3"])
def test_the_packed_form_is_the_naive_one(threshold, settings, skipped):
    others = [fv.PIVOT(skip=skipped)] if skipped else []
    fast, images = forgetting(threshold, *others, dtype=D, **settings), tiny.images("iret", 2, dtype=D)
    config, base = fast.plan.find("iret"), tiny.model("iret", D)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        coarse, bands = base.sample(images)
        tokens, weights = base.embed(coarse), base.state_dict()
        for i in range(len(images)):
            expected, left = naive_iret(weights, tokens[i], bands[i], 3, (2, 3), config.thresholds(fast.card), config.bands(fast.card), 4, 4, skipped)
            torch.testing.assert_close(logits[i], expected, rtol=0, atol=1e-10)
            assert [np.flatnonzero(kept[i]).tolist() for kept in trace.kept] == left
    if threshold == BOTH:
        assert 18 > max(trace.tokens[0]) and len(set(trace.tokens[0])) > 1, "this test shows little"


def test_the_score_is_the_softmax_of_the_class_tokens_query_where_attention_is_linear():
    """Semantics 12: the thresholds keep their meaning."""
    images = tiny.images("iret")
    soft, linear = (forgetting((0.055, 0.0), *others) for others in ((), (fv.ViTALiTy(blocks=(1,)),)))
    with torch.no_grad():
        assert soft.traced(images)[1].tokens[0] == linear.traced(images)[1].tokens[0]


def test_spelled_out_attention_gives_the_same_row():
    fast, images = forgetting(), tiny.images("iret")
    with torch.no_grad():
        _, trace = fast.traced(images)
        for block in fast.blocks:
            block.attn.fused_attn = False
        assert fast.traced(images)[1].tokens == trace.tokens


def test_images_that_leave_at_an_exit_take_their_rows_along():
    plan = fv.Plan([fv.IRET(threshold=BOTH), fv.EarlyExit(after=(1, 2, 3), threshold=0.4)])
    fast, images = fv.adapt(tiny.model("iret"), plan).eval(), tiny.images("iret", 8)
    with torch.no_grad():
        torch.manual_seed(6)
        for _, parameter in fast.method_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.4)
        logits, trace = fast.traced(images)
        assert len(set(trace.exits)) > 1, "this test shows little"
        for image, expected, i in zip(images, logits, range(8)):
            alone, own = fast.traced(image[None])
            torch.testing.assert_close(alone[0], expected, rtol=0, atol=2e-6)
            assert own.tokens == [[stage[i]] for stage in trace.tokens] and own.exits == [trace.exits[i]]


# what is dropped


def test_at_least_one_patch_stays_and_that_is_reported():
    fast, images = forgetting(1.0), tiny.images("iret")
    with torch.no_grad():
        _, trace = fast.traced(images)
        assert trace.tokens == [[3, 3, 3]] * 2 and trace.rescued == [0, 1, 2]
        again = fv.Trace.from_json(trace.to_json())
        assert again.rescued == [0, 1, 2] and fv.Trace.concatenate([trace, trace]).rescued == [0, 1, 2, 3, 4, 5]
        assert forgetting(0.055).traced(images)[1].rescued == []


def test_a_threshold_of_zero_is_the_dense_model_bit_for_bit():
    fast, images = forgetting(0), tiny.images("iret")
    with torch.no_grad():
        logits, trace = fast.traced(images)
        assert torch.equal(logits, tiny.model("iret")(images)) and trace.tokens == [[18] * 3] * 2
    assert not fast.plan.data_dependent and fast.plan.watched(fast.card) == frozenset()
    with torch.no_grad():
        _, decisions = forgetting().traced(images)
        other, ran = fast.traced(images, decisions=decisions)
        assert ran.tokens == decisions.tokens and not torch.allclose(other, logits, atol=1e-3), "decisions of another threshold are honoured"
        torch.testing.assert_close(fast.masked(images, decisions), other, rtol=0, atol=2e-6)


def test_nothing_is_dropped_in_training():
    fast, images = forgetting(0.9, omit=0.0), tiny.images("iret")
    dense = fv.adapt(tiny.model("iret"), fv.Plan([]))
    torch.testing.assert_close(fast.train()(images), dense.train()(images), rtol=0, atol=2e-6)
    assert all(stage.tokens.counts() == [18] * 3 for stage in fast.training_outputs(images).run.stages)


def test_another_threshold_needs_no_training():
    fast, images = forgetting(), tiny.images("iret")
    with torch.no_grad():
        other = fv.replan(fast, fv.Plan([fv.IRET(threshold=0.07)]))
        assert torch.equal(other(images), forgetting(0.07)(images))


def test_nan_attention_names_block_and_image():
    fast, images = forgetting(), tiny.images("iret")
    images[1, 0, 3, 3] = float("nan")
    with torch.no_grad(), refused("NaN", "block 1, image 2"):
        fast.traced(images)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("others", [(), (fv.SPViT(after=(3,), keep=(0.5,), select="argmax"),)], ids=["alone", "spvit"])
def test_a_graph_traced_at_batch_one_decides_for_every_image(others):
    fast, images = forgetting(BOTH, *others), tiny.images("iret", 6)
    with torch.no_grad():
        traced = torch.jit.trace(fast, (images[:1],), check_trace=False)
        logits, trace = fast.traced(images)
        assert len(set(trace.tokens[-1])) > 1
        for image, expected in zip(images, logits):
            torch.testing.assert_close(traced(image[None])[0], expected, rtol=0, atol=2e-6)


def test_a_threshold_of_zero_exports_with_a_dynamic_batch():
    fast, images = forgetting(0, samples=2), tiny.images("iret", 5)
    exported = torch.export.export(fast, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(exported(images[:count]), fast(images[:count]), rtol=0, atol=2e-6)


# training


def test_auxiliary_classifiers_and_the_lifting_scheme_learn():
    fast, images, labels = forgetting(omit=0.0).train(), tiny.images("iret", 6), torch.arange(6)
    outputs = fast.training_outputs(images)
    terms = outputs.terms | fast.label_losses(outputs, labels)
    assert set(terms) == {"iret_lifting", "iret_auxiliary_2", "iret_auxiliary_3"}
    first = outputs.run.answers["iret_2"]
    torch.testing.assert_close(terms["iret_auxiliary_2"], 0.3 * torch.nn.functional.cross_entropy(first, labels))
    _, bands = fast.anatomy.model.sample(images)
    torch.testing.assert_close(terms["iret_lifting"], 0.1 * sum(lifting_losses(bands)))
    sum(terms.values()).backward()
    own = dict(fast.method_parameters())
    assert len(own) == 8 and all(p.grad.abs().max() > 0 for p in own.values())
    sampler = fast.anatomy.model.sampler
    assert all(p.grad.abs().max() > 0 for step in (sampler.horizontal, sampler.vertical_low, sampler.vertical_high) for p in step.parameters())


def test_mixed_labels_reach_the_auxiliary_classifiers():
    fast = forgetting(omit=0.0).train()
    outputs = fast.training_outputs(tiny.images("iret"))
    hard = fast.label_losses(outputs, torch.tensor([1, 4, 2]))
    soft = fast.label_losses(outputs, torch.nn.functional.one_hot(torch.tensor([1, 4, 2]), 7).float())
    assert all(torch.allclose(soft[name], value) for name, value in hard.items())


@pytest.mark.parametrize("key, settings, names", [
    ("iret", dict(auxiliary_weight=0, lifting_weight=0), set()), ("iret-dwt", {}, {"iret_auxiliary_3"}), ("iret", dict(lifting_weight=0), {"iret_auxiliary_2", "iret_auxiliary_3"}),
])
def test_terms_that_are_off_or_impossible_are_left_out(key, settings, names):
    fast = forgetting(0.05, key=key, **settings).train()
    outputs = fast.training_outputs(tiny.images(key))
    assert set(outputs.terms | fast.label_losses(outputs, torch.arange(3))) == names


def test_training_misses_sub_bands_as_often_as_asked():
    fast, images = forgetting(0, omit=0.5, samples=2), tiny.images("iret", 1)
    seen = []
    inner = fast.iret._sampled
    fast.iret._sampled = lambda tokens, run: seen.append(inner(tokens, run)) or seen[-1]
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(60):
            fast.train()(images)
        counts = [min(tokens.beside.shape[1], 2) for tokens in seen]
        assert 20 < counts.count(2) < 40 and 8 <= counts.count(0) and 8 <= counts.count(1)
        torch.manual_seed(1)
        seen.clear()
        fast(images)
        assert [min(tokens.beside.shape[1], 2) for tokens in seen] == counts[:1], "the same seed, the same sub-bands"
        seen.clear()
        fast.eval()(images)
        assert seen[0].beside.shape[1] == 3, "evaluation sees all"


def test_saved_runs_are_without_the_auxiliary_classifiers(tmp_path):
    fast, images = forgetting(), tiny.images("iret")
    fv.save(fast, tmp_path / "run")
    back = fv.load(tmp_path / "run")
    assert not any(name.startswith("iret.") for name in fast.inference_state()) and back.plan == fast.plan
    with torch.no_grad():
        assert torch.equal(back(images), fast(images))


# settings


@pytest.mark.parametrize("settings, words", [
    (dict(threshold=-0.1), ("threshold=-0.1", r"\[0, 1\]")), (dict(threshold=1.5), ("threshold=1.5",)), (dict(threshold="low"), ("threshold='low'",)),
    (dict(threshold=(0.1, None)), ("threshold",)), (dict(threshold=()), ("threshold",)), (dict(threshold=float("nan")), ("threshold=nan",)), (dict(threshold=True), ("threshold",)),
    (dict(samples=4), ("samples=4", "0 to 3")), (dict(samples=-1), ("samples=-1",)), (dict(focus=1), ("focus=1",)), (dict(omit=1.1), ("omit=1.1",)),
    (dict(auxiliary_weight=-1), ("auxiliary_weight",)), (dict(lifting_weight=float("inf")), ("lifting_weight",)),
])
def test_settings_that_make_no_sense_are_refused(settings, words):
    with refused("iret", *words):
        fv.IRET(**settings)


def test_models_without_widening_blocks_are_refused_by_name():
    for key in ("deit", "distilled", "lvvit"):
        with refused("iret on", tiny.ALL[key][0], "iret_small"):
            fv.adapt(tiny.model(key), fv.Plan([fv.IRET()]))
    with refused("threshold", "one threshold, or 3", "blocks 4, 5, 6"):
        fv.count("iret_small", fv.Plan([fv.IRET(threshold=(0.1, 0.2))]))
    with refused("block 3", "skipped attentions"):
        fv.count("iret_small", "iret() + pivot(skip=[1,2,3])")


def test_focus_wins_over_samples():
    card = fv.adapt(tiny.model("iret"), fv.Plan([fv.IRET()])).card
    assert [fv.IRET(samples=n).bands(card) for n in range(4)] == [0, 1, 2, 2] and fv.IRET(focus=False, samples=3).bands(card) == 0


# cost


def flops_of(fast, images) -> float:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        fast.requires_grad_(False)(images)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("others", [(), (fv.PIVOT(skip=(2,)),), (fv.PIVOT(skip=(2, 3)),)], ids=["alone", "skip-2", "skip-2-3"])
@pytest.mark.parametrize("threshold, settings", [(BOTH, {}), (0, {}), ((0.05, 0.0), dict(samples=1)), (BOTH, dict(focus=False))], ids=["both", "none", "one", "no-focus"])
def test_counts_are_what_torch_counts(threshold, settings, others):
    fast, images = forgetting(threshold, *others, **settings), tiny.images("iret", 1)
    with torch.no_grad():
        _, trace = fast.traced(images)
    assert fv.count(fast, trace=trace).macs == flops_of(fast, images)


def test_parameters_are_those_of_the_inference_model():
    fast = forgetting()
    assert fv.count(fast).params == sum(p.numel() for p in tiny.model("iret").parameters())


def test_published_costs():
    """Table 1 and Fig. 17 of IRET: 3.51 dense; at 0.003 tokens (109, 61, 15) leave before blocks 4, 5 and 6, and 0.646 is printed."""
    plan = fv.Plan([fv.IRET(threshold=0.003)])
    assert round(fv.count("iret_small", fv.Plan([fv.IRET(threshold=0)]), include="blocks").macs / 1e9, 4) == 3.5146
    kept = dict(tokens=(198 - 109, 198 - 109 - 61, 198 - 109 - 61 - 15))
    assert kept["tokens"] == (89, 28, 13)
    blocks, everything = (fv.count("iret_small", plan, include=part, **kept) for part in ("blocks", "all"))
    rows = blocks.by_operation()["class_row"]
    assert rows == 198 * 192 + 89 * 294 + 28 * 348 and round((blocks.macs - rows) / 1e9, 4) == 0.6081
    assert 0.61 < everything.macs / 1e9 < 0.65
    assert fv.count("iret_small", plan).label == "dense upper bound"


@pytest.mark.parametrize("gmacs, used", [(2.82, 13.75), (2.51, 12.24), (1.86, 9.07), (1.42, 6.93), (1.28, 6.24), (1.08, 5.27), (1.06, 5.17), (0.65, 3.17)])
def test_parameters_used_are_the_cost_in_another_unit(gmacs, used):
    """Table 1 of IRET; its row of 0.002 prints 1.02 GFLOPs, Table 3 prints 1.067, and 5.17 belongs to 1.06."""
    assert parameters_used(gmacs * 1e9) / 1e6 == pytest.approx(used, abs=0.006)


def test_presets():
    assert {"iret-small", "iret-nano"} <= set(presets())
    assert presets()["iret-small"].recipe == "iret" and presets()["iret-small"].teacher == "regnety_160.deit_in1k" and fv.Plan.parse("iret-small").find("iret").threshold == 0.0004


# command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    base = tiny.randomised(timm.create_model("iret_nano", depth=4, widen_at=(2, 3), embed_dims=(12, 18, 24)), 0.3).eval()
    return fv.save(fv.adapt(base, fv.Plan([fv.IRET(threshold=0.018)])), tmp_path_factory.mktemp("iret") / "run")


def test_thresholds_on_the_command_line(run, tmp_path, capsys):
    said = answer(capsys, "thresholds", run, "--data", "fashion-mnist-subset", "--limit", 20, "--threshold", 0, 0.018, 0.5, "--threshold", "0.018,0", "--out", tmp_path)
    assert said["layers"] == [2, 3] and said["images"] == 20
    none, some, all_, split = said["thresholds"]
    assert none["dropped"] == [0, 0] and none["tokens_left"] == 51 and none["macs"] == said["macs_dense"] and none["params_used"] == said["params"]
    assert some["dropped"][0] > 1 and some["macs"] < none["macs"] and some["tokens_left"] == pytest.approx(51 - sum(some["dropped"]))
    assert some["params_used"] == pytest.approx(said["params"] * some["macs"] / said["macs_dense"])
    assert all_["rescued"] == 20 and all_["tokens_left"] == 3
    assert split["threshold"] == [0.018, 0] and split["dropped"] == [some["dropped"][0], 0]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    one = answer(capsys, "eval", run, "--data", "fashion-mnist-subset", "--limit", 20, "--plan", "iret(threshold=0.5)")
    assert one["rescued"] == 20 and one["accuracy_percent"] == all_["accuracy_percent"]


def test_what_thresholds_refuses(run, capsys):
    for arguments, words in ((["spvit-nano"], "plans with iret"), ([run, "--data", "fashion-mnist-subset", "--threshold", "low"], "--threshold low"),
                             ([run, "--data", "fashion-mnist-subset", "--threshold", "2"], "threshold=2.0")):
        assert main(["thresholds", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err


def test_forget_and_focus_maps(run, tmp_path, capsys):
    from foveate.report import load_results

    answer(capsys, "inspect", "tokens", run, "--data", "fashion-mnist-subset", "--count", 2, "--out", tmp_path)
    forget, *focus = load_results(tmp_path).grids
    assert forget.stages == ("after block 1", "after block 2") and forget.grids == ((7, 7), (7, 7))
    assert [grid.images.shape for grid in focus] == [(2, 14, 14), (2, 14, 14)] and all(grid.images.max() == 255 for grid in focus)
    assert all(np.array_equal(one.kept[0], kept) for one, kept in zip(focus, forget.kept))


def test_training_reads_whole_images():
    """The patches are those of the halved image."""
    base = timm.create_model("iret_nano", depth=4, widen_at=(2,), embed_dims=(12, 18))
    assert Preprocessing.of(base).image_size == Preprocessing.of(fv.adapt(base, fv.Plan([fv.IRET()]))).image_size == 28


def test_training_from_scratch_with_a_teacher(tmp_path, capsys):
    folder = tmp_path / "photos"
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(torch.randint(256, (28, 28, 3), dtype=torch.uint8).numpy()).save(folder / split / name / f"{number}.png")
    small = timm.create_model("foveate_nano_p4", depth=2, embed_dim=24, num_heads=2, num_classes=2)
    teacher, other = fv.save(small, tmp_path / "teacher"), fv.save(tiny.model(), tmp_path / "other")
    command = ["adapt", "iret_nano", "--plan", "iret-nano", "--data-dir", folder, "--split", "train+validation", "--epochs", 1, "--batch-size", 4,
               "--device", "cpu", "--scratch", "--steps", 1]
    answer(capsys, *command, "--teacher", teacher, "--out", tmp_path / "run")
    fast = fv.load(tmp_path / "run")
    assert fast.plan == fv.Plan.parse("iret-nano") and fast.num_classes == 2
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["hard_weight"] == 0.5 and recipe["kl_weight"] == recipe["distill_weight"] == 0
    for arguments, words in ((["--teacher", other, "--out", tmp_path / "no"], "7 classes, 32x32 pixels"),
                             (["--out", tmp_path / "no"], "--teacher foveate_nano_p4 (10 classes"),  # the preset's
                             (["--pretrained", "--out", tmp_path / "no"], "--scratch with --pretrained")):
        assert main([str(a) for a in (*command, *arguments)]) == 2
        assert words in capsys.readouterr().err
