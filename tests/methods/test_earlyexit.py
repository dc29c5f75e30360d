"""Early exits: settings, what an exit reads, when images leave, losses, costs, and training on a frozen backbone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from foveate.nn.tokens import PACKAGE, PREFIX
from foveate.train.data import load_data
from foveate.train.fit import DataSets, fit
from foveate.train.preprocessing import Preprocessing
from foveate.train.recipe import Recipe

EXITS = fv.EarlyExit(after=(1, 2, 3))
ARGMAX = fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select="argmax")
NAN = float("nan")


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


# settings


def test_blocks_may_be_counted_on():
    assert fv.EarlyExit(after=(4, ..., 12)).after == tuple(range(4, 13))
    assert fv.EarlyExit(after=[2, 4, ..., 10, 12]).after == (2, 4, 6, 8, 10, 12) and fv.EarlyExit(after=(1, ..., 3, ..., 5)).after == (1, 2, 3, 4, 5)
    assert fv.Plan.parse("earlyexit(after=[4, ..., 12])") == fv.Plan([fv.EarlyExit(after=(4, ..., 12))])
    assert fv.EarlyExit(after=5).after == (5,)


@pytest.mark.parametrize("after", [
    (...,), (..., 4), (4, ...), (4, ..., ...), (4, ..., 3), (2, 5, ..., 12), ("4", ..., 6), (True, ..., 4), (), (4, 4), (0, 4), None,
])  # fmt: skip
def test_blocks_that_are_none_are_refused(after):
    with refused("earlyexit", "after"):
        fv.EarlyExit(after=after)


@pytest.mark.parametrize(("gate", "threshold"), [("confidence", 0.7), ("max_probability", 0.7), ("margin", 0.5), ("entropy", 0.3), ("patience", 2)])
def test_every_gate_has_a_usual_threshold_and_a_text(gate, threshold):
    config = fv.EarlyExit(after=(4, 5), gate=gate)
    assert config.threshold == threshold and config == fv.EarlyExit(after=(4, 5), gate=gate, threshold=threshold)
    assert fv.Plan.parse(f"earlyexit(after=[4,5], gate={gate}, threshold={threshold})") == fv.Plan([config]) == fv.Plan.parse(str(fv.Plan([config])))
    assert config.data_dependent and "threshold" not in config.explicit()


@pytest.mark.parametrize(("settings", "words"), [
    (dict(gate="sure"), ("gate", "confidence, max_probability")), (dict(gate=0.7), ("gate",)), (dict(threshold=70), ("threshold=70", "write 0.7")),
    *[(dict(threshold=value), ("threshold",)) for value in (-0.1, "0.7", True, NAN)],
    (dict(gate="patience", threshold=0), ("whole number >= 1",)), (dict(gate="patience", threshold=1.5), ("whole number >= 1",)),
    (dict(gate="patience", threshold=float("inf")), ("whole number >= 1",)), (dict(gate="patience", threshold=NAN), ("whole number >= 1",)),
    (dict(train="last"), ("train", "joint")), (dict(exit_weight=-1), ("exit_weight",)),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, words):
    with refused(*words):
        fv.EarlyExit(after=(4, 5), **settings)


def test_the_last_exit_is_the_models_own_head_whether_named_or_not():
    named, silent = (tiny.adapted(fv.Plan([fv.EarlyExit(after=after)])) for after in ((1, 3, 4), (1, 3)))
    assert named.exit_blocks == silent.exit_blocks == (1, 3, 4)
    assert list(named.earlyexit.exits) == list(silent.earlyexit.exits) == ["1", "3"]
    assert torch.equal(named(tiny.images()), silent(tiny.images()))


@pytest.mark.parametrize(("after", "words"), [((3, 5), (r"\[3, 5\]", "blocks 1...4", "replace 5")), ((4,), ("one before the last", "own head"))])
def test_exits_outside_the_model_are_refused(after, words):
    for use in (fv.adapt, fv.count):
        with refused(*words):
            use(tiny.model(), fv.Plan([fv.EarlyExit(after=after)]))


def test_models_without_classes_and_two_methods_with_exits_are_refused():
    base = tiny.model()
    base.reset_classifier(0)
    with refused("deit_tiny_patch16_224 has 0", "num_classes"):
        fv.adapt(base, fv.Plan([EXITS]))


# what an exit reads


def mean_of_each(tokens, include_prefix: bool) -> torch.Tensor:
    """The weighted mean of each image's tokens in float64, image by image."""
    rows, places = tokens.x.flatten(0, -2).double(), tokens.places().flatten()
    share = {PREFIX: float(include_prefix), PACKAGE: tokens.package_weight}
    weight = torch.tensor([share.get(place, 1.0) for place in places.tolist()]).double()
    weight = weight * tokens.live.flatten() if tokens.masked else weight
    image = tokens.image_of_row()
    return torch.stack([(weight[image == i, None] * rows[image == i]).sum(0) / weight[image == i].sum() for i in range(tokens.images)])


@pytest.mark.parametrize("key", [*tiny.MODELS, *tiny.ATTENTION_ONLY, *tiny.WIDENING])
def test_an_exit_reads_the_class_token_or_the_mean_that_the_head_reads(key):
    pruned = key not in tiny.ATTENTION_ONLY and key not in tiny.WIDENING
    package = fv.SPViT(after=(1,), keep=(0.5,), select="argmax", package_weight=0.25)
    fast, images, seen = tiny.adapted(fv.Plan([package] if pruned else []), key), tiny.images(key), []
    after = fast.anatomy.block

    def noting(number, tokens, *rest):
        seen.append(after(number, tokens, *rest))
        return seen[-1]

    fast.anatomy.block = noting
    with torch.no_grad():
        _, trace = fast.traced(images)
        fast.masked(images, trace)
        for tokens in seen:
            if fast.card.pool == "token":
                expected = torch.stack([tokens.x.flatten(0, -2)[(tokens.image_of_row() == i) & (tokens.places().flatten() == PREFIX)][0] for i in range(3)])
                assert torch.equal(fast.anatomy.pooled(tokens), expected)
            else:
                expected = mean_of_each(tokens, key == "average-all")
                torch.testing.assert_close(fast.anatomy.pooled(tokens).double(), expected, rtol=1e-5, atol=1e-5 * max(1, expected.abs().max().item()))
    assert not pruned or {tokens.masked for tokens in seen} == {True, False}
    assert (fast.card.pool == "token") == (key in ("deit", "distilled", "deit3", "augreg", "dinov2", "dinov2-registers", "clip", "qk-norm", "scale-norm",
                                                   "dynamic", "one-head", "oblong", "lvvit", "pit", *tiny.WIDENING))


@pytest.mark.parametrize("key", ["deit", "siglip"])
def test_the_last_exit_answers_as_the_model_without_exits(key):
    open_door, dense = tiny.adapted(fv.Plan([fv.EarlyExit(after=(1, 2), threshold=1.0)]), key), tiny.model(key)
    with torch.no_grad():
        logits, trace = open_door.traced(tiny.images(key))
    assert torch.equal(logits, dense(tiny.images(key))) and trace.exits == [4, 4, 4]


def test_an_exit_stands_before_a_pruning_stage_behind_the_same_block():
    fast, images = tiny.adapted(fv.Plan([ARGMAX, fv.EarlyExit(after=(1, 3))])), tiny.images()
    with torch.no_grad():
        logits, trace = fast.traced(images)
    gone = [place for place, block in enumerate(trace.exits) if block == 1]
    assert gone and all(trace.tokens[0][place] == 0 and not trace.kept[0][place].any() and trace.block_tokens[1][place] == 0 for place in gone)
    with torch.no_grad():
        x = fast.anatomy.block(1, fast.anatomy.stem(images)).x[:, 0]
        exit = fast.earlyexit.exits["1"]
        by_hand = F.layer_norm(x, x.shape[-1:], exit.norm.weight, exit.norm.bias, 1e-6) @ exit.fc.weight.T + exit.fc.bias
    torch.testing.assert_close(logits[gone], by_hand[gone])
    fv.count(fast, trace=trace)


# when images leave


def with_answers(gate: str, threshold, *rows: list[float]) -> list[int]:
    """Which images an exit lets go that gives these logits, one row an image."""
    hooks = tiny.adapted(fv.Plan([fv.EarlyExit(after=(1,), gate=gate, threshold=threshold)])).earlyexit
    return hooks.sure([torch.tensor(rows)]).nonzero()[:, 0].tolist()


def test_the_threshold_itself_is_sure_enough():
    half = [0.0, 0.0, -torch.inf]
    assert with_answers("confidence", 0.5, half, [-0.01, 0.0, 0.0]) == [0]
    assert with_answers("margin", 0.0, half) == [0] and with_answers("entropy", 1.0, [1.0, 1.0, 1.0]) == [0]


@pytest.mark.parametrize(("gate", "never", "always"), [("confidence", 1.0, 0.0), ("max_probability", 1, 0), ("margin", 1.0, 0.0), ("entropy", 0.0, 1.0)])
def test_at_its_end_a_gate_lets_nobody_go_however_sure(gate, never, always):
    rows = [1e4, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    assert with_answers(gate, never, *rows) == [] and with_answers(gate, always, *rows) == [0, 1, 2]


@pytest.mark.parametrize(("gate", "threshold"), [("confidence", 0.0), ("margin", 0.0), ("entropy", 1.0), ("patience", 1)])
def test_answers_that_are_no_numbers_are_never_sure(gate, threshold):
    fast, images = tiny.adapted(fv.Plan([fv.EarlyExit(after=(1, 2), gate=gate, threshold=threshold)])), tiny.images()
    with torch.no_grad():
        for exit in fast.earlyexit.exits.values():
            exit.fc.bias[2] = NAN
        logits, trace = fast.traced(images)
    assert trace.exits == [4, 4, 4] and torch.equal(logits, tiny.model()(images))


def test_patience_waits_for_exits_that_agree():
    fast, images = tiny.adapted(fv.Plan([fv.EarlyExit(after=(1, 2, 3), gate="patience", threshold=1)])), tiny.images(count=12)
    named = torch.stack([answer.argmax(-1) for answer in fast.exit_logits(images)[0].values()]).T.tolist()
    expected = [next((block for block in (2, 3) if row[block - 1] == row[block - 2]), 4) for row in named]
    assert fast.traced(images)[1].exits == expected and len(set(expected)) > 1
    patient = fv.replan(fast, fv.Plan([fv.EarlyExit(after=(1, 2, 3), gate="patience", threshold=2)]))
    assert patient.traced(images)[1].exits == [3 if row[0] == row[1] == row[2] else 4 for row in named]


def test_every_exits_logits_are_those_it_gives_when_images_stop_there():
    fast, images = tiny.adapted(fv.Plan([EXITS, ARGMAX])), tiny.images(count=6)
    with torch.no_grad():
        answers, trace = fast.exit_logits(images)
        logits, left = fast.traced(images)
    assert list(answers) == [1, 2, 3, 4] and trace.exits == [] and len(trace.block_tokens) == 4 and min(trace.block_tokens[-1]) > 0
    torch.testing.assert_close(logits, torch.stack([answers[block][place] for place, block in enumerate(left.exits)]), rtol=0, atol=1e-4)
    with refused("exit_logits", "early exits"):
        tiny.adapted(fv.Plan()).exit_logits(images)


# losses


def test_every_exit_learns_from_the_mean_cross_entropy():
    fast, images = tiny.adapted(fv.Plan([EXITS])).train(), tiny.images(count=8)
    labels, mixed = torch.arange(8) % 7, torch.rand(8, 7).softmax(-1)
    for targets in (labels, mixed):
        outputs = fast.training_outputs(images)
        found = fast.label_losses(outputs, targets)
        alone = {block: F.cross_entropy(answer, targets) for block, answer in fast.exit_logits(images)[0].items()}
        assert list(found) == ["earlyexit_exit_1", "earlyexit_exit_2", "earlyexit_exit_3"]
        torch.testing.assert_close(sum(found.values()), sum(alone[block] for block in (1, 2, 3)) / 3)
        torch.testing.assert_close(found["earlyexit_exit_2"], alone[2] / 3)
    heavy = fv.replan(fast, fv.Plan([EXITS.but(exit_weight=3.0)]))
    total = lambda model: sum(model.label_losses(model.training_outputs(images), labels).values())
    torch.testing.assert_close(total(heavy), 3 * total(fast))
    silent = fv.replan(fast, fv.Plan([EXITS.but(exit_weight=0)]))
    assert silent.label_losses(silent.training_outputs(images), labels) == {}


@pytest.mark.parametrize("train", ["joint", "heads"])
def test_the_backbone_learns_from_exits_only_jointly(train):
    fast, images = tiny.adapted(fv.Plan([EXITS.but(train=train)])).train(), tiny.images(count=8)
    sum(fast.label_losses(fast.training_outputs(images), torch.arange(8) % 7).values()).backward()
    own = dict(fast.method_parameters())
    assert all(p.grad.abs().max() > 0 for p in own.values()) and len(own) == 12
    reached = [name for name, p in fast.named_parameters() if name not in own and p.grad is not None]
    assert bool(reached) == (train == "joint") and not any(name.startswith(("blocks.3", "norm", "head")) for name in reached)


@pytest.mark.parametrize("key", ["deit", "lvvit"])  # LV-ViT's stem has BatchNorms
def test_a_frozen_backbone_stays_bit_for_bit(key, tmp_path):
    base = tiny.model(key)
    fast = fv.adapt(base, fv.Plan([EXITS]))
    fresh = copy.deepcopy(fast.state_dict())
    images = load_data("digits", preprocessing=Preprocessing(32, (0.5,) * 3, (0.5,) * 3)).subset(range(48))
    fast.anatomy.model.num_classes = 10  # the digits' classes: the heads have three outputs to spare
    fast.head, fast.anatomy.model.head = (torch.nn.Linear(24, 10),) * 2
    for exit in fast.earlyexit.exits.values():
        exit.fc = torch.nn.Linear(24, 10)
    fresh |= {name: value.clone() for name, value in fast.state_dict().items() if name.startswith(("head", "earlyexit"))}
    recipe = Recipe(epochs=1, batch_size=16, lr=1e-2, backbone_lr=0.0, weight_decay=0.5, augmentation="none", precision="32-true")
    if key == "lvvit":
        fast.aux_head = torch.nn.Linear(24, 10)
        fresh |= {name: value.clone() for name, value in fast.state_dict().items() if name.startswith("aux_head")}
    fit(fast, tmp_path / "run", DataSets(images), recipe, device="cpu", progress=False)
    after = fast.state_dict()
    assert list(after) == list(fresh)
    for name, value in after.items():
        assert torch.equal(value, fresh[name]) != name.startswith("earlyexit."), name
    assert all(p.requires_grad for p in fast.parameters())


# costs


@pytest.mark.parametrize(("name", "gmacs"), [
    ("iret_small", (0.5364, 0.8514, 1.2318, 1.6123, 1.9928, 2.3732, 2.7537, 3.1342, 3.5146)),
])
def test_published_costs_of_irets_exits(name, gmacs):
    """Blocks only, 198 tokens; exit heads at 4 to 11 of 1,000 classes have 2.95 M parameters."""
    plan = fv.Plan([fv.EarlyExit(after=(4, ..., 12))])
    for place, expected in enumerate(gmacs):
        shares = tuple(float(place == at) for at in range(9))
        assert round(fv.count(name, plan, exits=shares, include="blocks").macs / 1e9, 4) == expected
    extra = fv.count(name, plan).params - fv.count(name).params
    assert extra == sum(2 * width + (width + 1) * 1000 for width in (294, 348, *[384] * 6)) == 2_959_892


def test_the_share_of_images_at_each_exit_gives_the_mean_cost():
    plan = fv.Plan([fv.EarlyExit(after=(4, 8))])
    alone = [fv.count("deit_small_patch16_224", plan, exits=one) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    mixed = fv.count("deit_small_patch16_224", plan, exits=(0.3, 0.2, 0.5))
    assert mixed.macs == pytest.approx(0.3 * alone[0].macs + 0.2 * alone[1].macs + 0.5 * alone[2].macs, rel=1e-12)
    assert mixed.label == "exits 0.3, 0.2, 0.5" and mixed.params == alone[0].params
    bound = fv.count("deit_small_patch16_224", plan)
    assert bound.label == "upper bound: all exits computed, nobody leaves"
    assert bound.macs == alone[2].macs == fv.count("deit_small_patch16_224").macs + 2 * 384 * 1000
    assert "head_exit" in bound.by_operation() and "head_exit" not in fv.count("deit_small_patch16_224", plan, include="blocks").by_operation()
    staged = fv.Plan([fv.EarlyExit(after=(4, 8)), fv.SPViT(after=(4,), keep=(0.5,), select="argmax")])
    assert fv.count("deit_small_patch16_224", staged, exits=(0.3, 0.2, 0.5)).label == "upper bound for exits 0.3, 0.2, 0.5"
    known = fv.count("deit_small_patch16_224", staged, tokens=(99,), exits=(0.5, 0.25, 0.25))
    assert known.label == "tokens 99; exits 0.5, 0.25, 0.25" and known.macs < fv.count("deit_small_patch16_224", staged, exits=(0.5, 0.25, 0.25)).macs


@pytest.mark.parametrize("exits", [(0.5, 0.5), (0.5, 0.4, 0.2), (0.5, 0.6, -0.1), (1,), (True, 0, 0), ("1", 0, 0)])
def test_shares_that_are_none_are_refused(exits):
    with refused("exits", "3 shares that sum to 1", "4, 8, 12"):
        fv.count("deit_small_patch16_224", fv.Plan([fv.EarlyExit(after=(4, 8))]), exits=exits)


def test_shares_without_exits_beside_a_trace_and_for_a_cascade_are_refused():
    with refused("exits", "plans with early exits"):
        fv.count("deit_small_patch16_224", exits=(1.0,))
    with refused("trace=..., exits", "leave exits out"):
        fv.count("deit_small_patch16_224", fv.Plan([fv.EarlyExit(after=(4, 8))]), fv.Trace(images=1), exits=(1, 0, 0))
    cascade = fv.Plan.cascade([fv.Plan([fv.PIVOT(skip=(2,))]), fv.Plan()], gate=fv.Entropy(0.3))
    for use in (fv.count, fv.simulate):
        with refused("exits", "cascade"):
            use("deit_small_patch16_224", cascade, exits=(0.5, 0.5))


def test_simulated_shares_are_the_mean_of_their_exits():
    plan = fv.Plan([fv.EarlyExit(after=(4, 8))])
    alone = [fv.simulate("deit_small_patch16_224", plan, exits=one).latency_ms for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    mixed = fv.simulate("deit_small_patch16_224", plan, exits=(0.3, 0.2, 0.5))
    assert mixed.latency_ms == pytest.approx(0.3 * alone[0] + 0.2 * alone[1] + 0.5 * alone[2], rel=1e-9)
    assert alone[0] < alone[1] < alone[2] and mixed.label.startswith("exits 0.3, 0.2, 0.5 on zcu102")


@pytest.mark.parametrize(("key", "methods"), [
    ("deit", []), ("siglip-gap", []), ("pit", []), ("swin", []), ("iret", []), ("deit", [fv.PIVOT(skip=(2, 3))]),
    *[(key, [fv.SPViT(after=(1, 2), keep=(0.6, 0.3))]) for key in ("deit", "no-class")], ("lvvit", [fv.Random(after=(1,), keep=(0.5,))]),
])  # fmt: skip
def test_the_count_is_what_images_multiplied_up_to_their_exit(key, methods):
    fast = tiny.adapted(fv.Plan([*methods, EXITS]), key).requires_grad_(False)
    seen = set()
    for image in tiny.images(key):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, trace = fast.traced(image[None])
        assert fv.count(fast, trace=trace).macs == counter.get_total_flops() / 2
        seen |= set(trace.exits)
    assert len(seen) > 1
