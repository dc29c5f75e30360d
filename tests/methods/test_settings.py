"""Settings of all methods: what they accept, how they refuse the rest, and that they survive their own dictionaries."""

import dataclasses
import json

import pytest

import foveate as fv
import tiny
from foveate.methods import METHODS, cost, layers, method_class
from foveate.methods.base import kept_count

GOOD = {
    "spvit": dict(after=(3, 6, 9), keep=(0.7, 0.49, 0.343)),
    "random": dict(after=(3, 6, 9), keep=(0.7, 0.49, 0.343)),
    "structure": dict(keep=0.5),
    "vitality": dict(mode="sparse"),
    "pivot": dict(skip=(2, 3)),
    "iret": dict(threshold=(0.0004, 0.0, 0.003), samples=2),
    "linformer": dict(rank=8),
    "performer": dict(features=8),
    "lineartransformer": dict(blocks=(1, 2)),
    "efficient": dict(blocks=(1, 2)),
    "vitcod": dict(sparsity=0.8),
    "earlyexit": dict(after=(4, 5), gate="entropy"),
    "evit": dict(after=(4, 7), keep=(0.7, 0.49), fuse=False),
    "tome": dict(r=8, blocks=(2, 3)),
    "ats": dict(after=(4, 5), tokens=0.5),
}
STAGED = ("spvit", "random")


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


def test_every_method_has_a_row_here():
    assert set(GOOD) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_frozen_values(name):
    settings = method_class(name)(**GOOD[name])
    assert settings.name == name and settings == method_class(name)(**GOOD[name])
    assert hash(settings) == hash(method_class(name)(**GOOD[name]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.keep = 0.1


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_json(name):
    settings = method_class(name)(**GOOD[name])
    form = json.loads(json.dumps(settings.to_dict()))
    assert form.pop("method") == name
    assert method_class(name).from_dict(form) == settings
    assert set(form) == {f.name for f in dataclasses.fields(settings)}


@pytest.mark.parametrize("name", METHODS)
def test_every_room_has_its_files(name):
    assert hasattr(layers(name), "build") and hasattr(cost(name), "effect")


def test_lists_scalars_and_whole_numbers_become_one_form():
    assert fv.SPViT(after=[3], keep=[1]) == fv.SPViT(after=3, keep=1.0) == fv.SPViT(after=(3,), keep=(1.0,))
    assert fv.SPViT(after=3, keep=0.5).keep == (0.5,) and fv.SPViT(after=3, keep=0.5, package_weight=2).package_weight == 2.0
    assert fv.Structure(keep=[0.5]).keep == 0.5
    assert fv.Structure(keep=0.5, blocks=[2, 3]).blocks == (2, 3) and fv.Structure(keep=0.5, blocks=2).blocks == (2,)


def test_defaults():
    settings = fv.SPViT(after=(3,), keep=(0.5,))
    assert (settings.select, settings.package, settings.package_weight, settings.ratio_weight) == ("topk", True, 1.0, 2.0)
    assert not settings.data_dependent and fv.SPViT(after=(3,), keep=(0.5,), select="argmax").data_dependent
    assert not fv.Random(after=(3,), keep=(0.5,)).data_dependent and not fv.Structure(keep=0.5).data_dependent


BIG = 10**400
BAD = [
    *[(name, field, value) for name in STAGED for field, value in [
        ("after", (3, 3, 9)), ("after", (6, 3, 9)), ("after", (0, 3, 6)), ("after", (-1, 3, 6)), ("after", (3.0, 6, 9)),
        ("after", (True, 3, 6)), ("after", ()), ("after", "369"), ("after", None), ("after", ("3", "6", "9")), ("after", {3: 6}),
        ("keep", (0.7, 0.8, 0.3)), ("keep", (0.7, 0.5)), ("keep", (0.7, 0.5, 0.3, 0.2)), ("keep", (0.7, 0.5, 0.0)),
        ("keep", (0.7, 0.5, -0.1)), ("keep", (1.01, 0.5, 0.1)), ("keep", (70, 49, 34)), ("keep", (0.7, 0.5, float("nan"))),
        ("keep", (float("inf"), 0.5, 0.1)), ("keep", (0.7, 0.5, True)), ("keep", "0.7"), ("keep", (0.7, 0.5, "0.3")),
        ("keep", None), ("keep", 0.5), ("keep", (BIG, 0.5, 0.1)), ("keep", ((0.7,), 0.5, 0.1)),
        ("package", 1), ("package", "yes"), ("package", None),
        ("package_weight", -0.1), ("package_weight", float("nan")), ("package_weight", float("inf")), ("package_weight", True),
        ("package_weight", "1"), ("package_weight", BIG),
    ]],
    *[("spvit", field, value) for field, value in [
        ("select", "top-k"), ("select", None), ("select", 1), ("select", ["topk"]), ("ratio_weight", -1), ("ratio_weight", "2"),
        ("ratio_weight", float("nan")), ("ratio_weight", BIG)]],
    *[("random", "seed", value) for value in (1.5, "0", None, True)],
    *[("performer", "seed", value) for value in (1.5, "0", None, True, -1, 2**63)],
    *[(name, field, value) for name, field in (("linformer", "rank"), ("performer", "features")) for value in (0, -1, 1.5, True, "8", float("nan"))],
    ("linformer", "rank", None),
    *[("vitcod", "sparsity", value) for value in (1, 1.0, -0.1, 90, "0.9", None, True, float("nan"), BIG)],
    *[(name, "blocks", value) for name in ("linformer", "performer", "lineartransformer", "efficient", "vitcod") for value in ("some", (), (3, 2), (0,), None)],
    *[("structure", field, value) for field, value in [
        ("keep", 0), ("keep", 1.5), ("keep", "half"), ("keep", (0.5, 0.5)), ("keep", ()), ("keep", None), ("keep", float("nan")),
        ("blocks", "some"), ("blocks", ()), ("blocks", (2, 2)), ("blocks", (3, 2)), ("blocks", (0,)), ("blocks", 1.5), ("blocks", None)]],
]


@pytest.mark.parametrize("name, field, value", BAD, ids=[f"{n}-{f}-{str(v)[:24]}" for n, f, v in BAD])
def test_wrong_values_are_refused_by_name(name, field, value):
    with refused(f"{name}\\({field}="):
        method_class(name)(**GOOD[name] | {field: value})


@pytest.mark.parametrize("name", METHODS)
def test_unknown_and_missing_settings_are_refused(name):
    with refused(name, "'depth'"):
        method_class(name).from_dict(GOOD[name] | {"depth": 3})
    for field in dataclasses.fields(method_class(name)):
        if field.default is dataclasses.MISSING:
            with refused(name, f"without {field.name}"):
                method_class(name).from_dict({k: v for k, v in GOOD[name].items() if k != field.name})


def test_an_unknown_method_names_the_nearest():
    with refused("'spvt'", "spvit"):
        method_class("spvt")
    with refused("42"):
        method_class(42)


@pytest.mark.parametrize("tokens", [1, 3, 49, 196])
def test_kept_counts_round_half_up_and_never_reach_zero(tokens):
    for keep in (1e-9, 0.01, 0.25, 0.5, 0.7, 0.999, 1.0):
        count = kept_count(keep, tokens)
        assert 1 <= count <= tokens and (count == 1 or abs(count - keep * tokens) <= 0.5)
    assert kept_count(1.0, tokens) == tokens
    assert (kept_count(0.5, 5), kept_count(0.5, 3), kept_count(0.49, 3)) == (3, 2, 1)


# against a backbone


def card(key: str):
    return fv.adapt(tiny.model(key), fv.Plan([])).card


@pytest.mark.parametrize("name", STAGED)
def test_stages_must_lie_inside_the_backbone(name):
    for after in ((1, 4), (2, 5), (40,)):
        with refused(name, "after"):
            fv.adapt(tiny.model(), fv.Plan([method_class(name)(after=after, keep=(0.9, 0.5)[: len(after)])]))
    with refused("structure", "blocks"):
        fv.adapt(tiny.model(), fv.Plan([fv.Structure(keep=0.5, blocks=(1, 5))]))


@pytest.mark.parametrize("name", STAGED)
def test_ratios_must_fall_while_the_grid_stays(name):
    build = lambda keep: method_class(name)(after=(1, 3), keep=keep)
    with refused(name, "keep"):
        build((0.5, 0.5)).validate(card("deit"))
    build((0.5, 0.4)).validate(card("deit"))
    build((0.5, 0.5)).validate(card("swin"))  # relative to a grid of 64, then of 16
    with refused(name, "keep"):
        method_class(name)(after=(2, 3), keep=(0.5, 0.5)).validate(card("swin"))


def test_structure_refuses_eva():
    with refused("structure", "eva02_tiny_patch14_224"):
        fv.adapt(tiny.model("eva02"), fv.Plan([fv.Structure(keep=0.5)]))
