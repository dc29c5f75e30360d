"""Presets: every one is a valid plan for its backbone; the papers' places are there. Their costs are held in test_counting.py."""

import dataclasses

import pytest

import foveate as fv
from foveate.card import stored_card
from foveate.presets import Preset, preset, presets

PLACES = {
    "spvit-deit-tiny": ("deit_tiny_patch16_224", (3, 6, 9)), "spvit-deit-small": ("deit_small_patch16_224", (3, 6, 9)),
    "spvit-deit-256": ("deit_256_patch16_224", (3, 6, 9)), "spvit-deit-320": ("deit_320_patch16_224", (3, 6, 9)),
    "spvit-lvvit-s": ("lvvit_s", (4, 8, 12)), "spvit-lvvit-m": ("lvvit_m", (5, 10, 15)),
    "spvit-pit-tiny": ("pit_ti_224", (1, 5, 10)), "spvit-pit-xs": ("pit_xs_224", (1, 5, 10)), "spvit-pit-small": ("pit_s_224", (1, 5, 10)),
    "spvit-swin-tiny": ("swin_tiny_patch4_window7_224", (2, 4, 10)), "spvit-swin-small": ("swin_small_patch4_window7_224", (2, 4, 22)),
}


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_plan_for_its_backbone(name):
    found = preset(name)
    plan = fv.Plan.parse(name)
    card = stored_card(found.model)
    assert card is not None, f"{found.model} has no card: the preset would load torch"
    plan.validate(card)
    assert plan.methods and found.name == name and found.gmacs > 0 and found.source
    assert fv.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", PLACES)
def test_the_papers_backbones_have_selectors_where_the_paper_puts_them(name):
    model, after = PLACES[name]
    assert preset(name).model == model and preset(name).fitted
    assert fv.Plan.parse(name).find("spvit").after == after


@pytest.mark.parametrize("name", ["spvit-swin-tiny", "spvit-swin-small"])
def test_swins_selectors_stand_behind_its_mergings(name):
    card = stored_card(preset(name).model)
    assert [b for b in range(1, card.depth) if card.blocks[b - 1].transition] == list(fv.Plan.parse(name).find("spvit").after)


def test_the_preset_like_heatvit_prunes_what_pivot_says_of_it():
    """40, 74 and 87 % of the tokens of DeiT-S gone in encoders 4-6, 7-9 and 10-12 (section 4.3 of PIVOT)."""
    plan = fv.Plan.parse("heatvit-deit-small")
    operations = fv.count("deit_small_patch16_224", plan).operations
    seen = [next(o.m for o in operations if o.origin == f"blocks.{block}.mlp.fc1") for block in range(1, 13)]
    assert seen == [197] * 3 + [1 + 118 + 1] * 3 + [1 + 51 + 2] * 3 + [1 + 25 + 3] * 3
    assert round(sum(o.macs for o in operations if ".selector." not in o.origin) / 1e9, 2) == 2.31
    assert not preset("heatvit-deit-small").fitted


def test_baselines_have_presets():
    names = set(presets())
    assert {n.split("-")[0] for n in names} >= {"spvit", "random", "structure"}


@pytest.mark.parametrize("name, near", [("spvit-deit-smal", "spvit-deit-small"), ("deit", "spvit"), ("swin", "spvit-swin"), ("xyzzy", "choose|inline")])
def test_an_unknown_preset_names_its_neighbours(name, near):
    with pytest.raises(fv.FoveateError, match=f"(?s)given:.*{name}.*allowed:.*do:.*({near})"):
        preset(name)


def test_presets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("spvit-deit-small").model = "x"
    assert all(isinstance(p, Preset) for p in presets().values())
