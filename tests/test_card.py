"""Cards: JSON both ways, the places after a block, and where they are kept."""

import pytest

from foveate.card import Card, cache_folder, keep_card, shipped_names, stored_card
from foveate.errors import FoveateError


@pytest.mark.parametrize("name", ["deit_small_patch16_224", "pit_s_224", "swin_tiny_patch4_window7_224", "vit_base_patch16_siglip_224", "levit_128s", "mobilevit_xxs"])
def test_json_round_trip(name):
    card = stored_card(name)
    assert card.name == name and Card.from_json(card.to_json()) == card


def test_places_after_a_block_of_a_flat_model():
    card = stored_card("deit_small_patch16_224")
    assert (card.depth, card.prefix_tokens, card.tokens_after(3), card.grid_after(3)) == (12, 1, 196, (14, 14))
    assert (card.dim_after(12), card.heads_after(12), card.stage_of(12)) == (384, 6, 1)


def test_places_after_a_block_lie_behind_the_transition():
    swin = stored_card("swin_small_patch4_window7_224")
    assert [swin.tokens_after(b) for b in (1, 2, 3, 4, 22, 24)] == [3136, 784, 784, 196, 49, 49]
    assert [swin.dim_after(b) for b in (1, 2, 22)] == [96, 192, 768]
    assert [swin.heads_after(b) for b in (1, 2, 22)] == [3, 6, 24]
    assert [swin.stage_of(b) for b in (2, 3, 4, 5, 22, 23)] == [1, 2, 2, 3, 3, 4]
    pit = stored_card("pit_s_224")
    assert [pit.tokens_after(b) for b in (1, 2, 7, 8)] == [729, 196, 196, 49]


def test_places_after_a_block_that_subsamples():
    card = stored_card("levit_128s")
    assert [card.tokens_after(b) for b in (1, 2, 3, 6, 7, 11)] == [196, 196, 49, 49, 16, 16]
    assert [card.dim_after(b) for b in (1, 2, 3, 7)] == [128, 128, 256, 384]
    assert [card.stage_of(b) for b in (1, 3, 4, 7, 8)] == [1, 1, 2, 2, 3]
    assert [b.queries for b in card.blocks] == [None, None, 49, None, None, None, 16, None, None, None, None]


@pytest.mark.parametrize("name", ["levit_128s", "mobilevit_xs"])
def test_tokens_that_must_stay_are_refused_to_leave(name):
    with pytest.raises(FoveateError, match=f"pruning on {name}.*\n.*replace or skip attention"):
        stored_card(name).check_tokens("pruning")
    stored_card("pit_ti_224").check_tokens("pruning")


@pytest.mark.parametrize("block", [0, 13, -1])
def test_a_block_beyond_the_depth_is_refused(block):
    with pytest.raises(FoveateError, match="blocks 1 to 12"):
        stored_card("deit_tiny_patch16_224").tokens_after(block)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"blocks": [{"repeat": 1}]}'])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(FoveateError, match="no card"):
        Card.from_json(text)


def test_the_cache_keeps_a_card_and_survives_a_broken_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    assert stored_card("mine") is None and stored_card("../mine") is None
    card = stored_card("pit_ti_224")
    keep_card(card, "mine")
    assert stored_card("mine") == card
    path = cache_folder() / "mine.json"
    assert [p.name for p in path.parent.iterdir()] == ["mine.json"]
    path.write_text(path.read_text()[:100])
    assert stored_card("mine") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "file"))
    keep_card(stored_card("pit_ti_224"), "mine")
    assert stored_card("mine") is None


def test_the_backbones_of_the_papers_have_cards():
    names = set(shipped_names())
    assert {"deit_tiny_patch16_224", "lvvit_m", "pit_xs_224", "swin_small_patch4_window7_224", "deit_320_patch16_224",
            "levit_128s", "levit_128", "levit_192", "mobilevit_xxs", "mobilevit_xs", "mobilevit_s"} <= names
