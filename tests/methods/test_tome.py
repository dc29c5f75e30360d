"""ToMe against loops: who merges, into what, and how the attention counts it."""

import pytest
import torch

import foveate as fv
import tiny
from foveate.nn.merging import match, merge_masked, merge_rows, merge_uniform, sized_attention
from foveate.nn.tokens import dense, from_rows, with_all_live
from naive.merging import matches, merge, proportional_attention

HEADS, WIDTH, GRID = 3, 4, (3, 5)
SLOTS = GRID[0] * GRID[1]


def stream(images=3, prefix=1, seed=0):
    torch.manual_seed(seed)
    n = prefix + SLOTS
    return dense(torch.randn(images, n, 6, dtype=torch.float64), prefix, GRID), torch.randn(images, n, HEADS, WIDTH, dtype=torch.float64)


def expected(x, keys, sizes, alive, r):
    pairs = matches(keys, alive, r)
    out, grown = merge(x, sizes, pairs)
    gone = {i for i, _ in pairs}
    return out, grown, [i for i in range(len(x)) if alive[i] and i not in gone]


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("r", [1, 4, 7, 30])
def test_all_forms_merge_as_the_loops_do(prefix, r):
    tokens, keys = stream(prefix=prefix)
    once = merge_uniform(tokens, keys, r)
    assert (once.place[:, :prefix] == -1).all() and torch.equal(once.x[:, :prefix], tokens.x[:, :prefix])
    masked = merge_masked(with_all_live(tokens), keys, r)
    rows = merge_rows(tokens, keys, r)
    torch.testing.assert_close(rows.x, once.x)
    assert torch.equal(rows.place, once.place)
    for i in range(3):
        out, grown, stay = expected(tokens.x[i, prefix:], keys[i, prefix:], [1.0] * SLOTS, [True] * SLOTS, r)
        assert len(stay) == SLOTS - min(r, SLOTS // 2)
        assert once.place[i, prefix:].tolist() == stay == masked.live[i, prefix:].nonzero()[:, 0].tolist()
        torch.testing.assert_close(once.x[i, prefix:], out[stay])
        torch.testing.assert_close(masked.x[i, prefix:][stay], out[stay])
        for sizes in (once.sizes, masked.sizes, rows.sizes):
            torch.testing.assert_close(sizes[i, stay], torch.tensor(grown, dtype=torch.float64)[stay])
        assert sum(grown[j] for j in stay) == SLOTS, "every patch is in exactly one token"


def test_sizes_weigh_in_a_second_merge():
    tokens, keys = stream()
    once = merge_uniform(tokens, keys, 5)
    again = torch.randn(3, once.x.shape[1], HEADS, WIDTH, dtype=torch.float64)
    twice = merge_uniform(once, again, 4)
    for i in range(3):
        places = once.place[i, 1:].tolist()
        out, grown, stay = expected(once.x[i, 1:], again[i, 1:], once.sizes[i, places].tolist(), [True] * len(places), 4)
        torch.testing.assert_close(twice.x[i, 1:], out[stay])
        assert twice.sizes[i, twice.place[i, 1:]].tolist() == pytest.approx([grown[j] for j in stay])
        assert twice.size_of_rows()[i].sum() == 1 + SLOTS


def test_images_with_other_counts_merge_each_by_itself():
    tokens, keys = stream()
    kept = [[0, 1, 4, 5, 9], [2, 8], [7], list(range(SLOTS))]
    image, place = (torch.tensor(c) for c in zip(*((i, p) for i, places in enumerate(kept[:3]) for p in (-1, *places))))
    ragged = from_rows(tokens, tokens.x[image, place + 1], image, place)
    merged = merge_rows(ragged, keys[image, place + 1], 3)
    live = with_all_live(tokens)
    for i, places in enumerate(kept[:3]):
        live.live[i, [p + 1 for p in range(SLOTS) if p not in places]] = 0
        out, _, stay = expected(tokens.x[i, 1:], keys[i, 1:], [1.0] * SLOTS, [p in places for p in range(SLOTS)], 3)
        mine = merged.image_of_row() == i
        assert merged.place[mine].tolist() == [-1, *stay]
        torch.testing.assert_close(merged.x[mine][1:], out[stay])
    masked = merge_masked(live, keys, 3)
    assert torch.equal(masked.kept(), merged.kept())


def test_a_repeated_match_is_the_match():
    tokens, keys = stream()
    alike, live = torch.nn.functional.normalize(keys[:, 1:].mean(2), dim=-1), torch.ones(3, SLOTS, dtype=torch.bool)
    source, target = match(alike, live, 5)
    again, into = match(alike, live, 5, ~source)
    assert torch.equal(source, again) and torch.equal(target[source], into[source])
    few = torch.zeros_like(live)
    few[:, 4] = True
    source, target = match(alike, live, 5, few)
    assert source.sum(1).tolist() == [SLOTS - 1] * 3 and (target[source] == 4).all(), "all that stays takes all that goes"


@pytest.mark.parametrize("fused", [True, False])
def test_a_merged_key_counts_as_often_as_it_is_patches(fused):
    tokens, keys = stream()
    merged = merge_uniform(tokens, keys, 6)
    n = merged.x.shape[1]
    q, k, v = (torch.randn(3, n, HEADS, WIDTH, dtype=torch.float64) for _ in range(3))
    z = sized_attention(q, k, v, merged, 0.5, fused)
    sizes = merged.size_of_rows()
    assert sizes.max() > 1
    for i in range(3):
        for h in range(HEADS):
            torch.testing.assert_close(z[i, :, h], proportional_attention(q[i, :, h], k[i, :, h], v[i, :, h], sizes[i].tolist(), 0.5))
    lone = with_all_live(merged)
    torch.testing.assert_close(sized_attention(q, k, v, lone, 0.5), z)
    packed = from_rows(merged, merged.x.flatten(0, 1)[:-1], merged.image_of_row()[:-1], merged.place.flatten()[:-1])
    ragged = sized_attention(*(t.flatten(0, 1)[:-1] for t in (q, k, v)), packed, 0.5, fused)
    torch.testing.assert_close(ragged[: 2 * n], z[:2].flatten(0, 1))


def test_average_pooling_counts_a_merged_token_for_all_its_patches():
    """With every token merged by equal keys, the mean over patches stays what it was."""
    from foveate.backbones.anatomy import pooling_weights, weighted_mean

    tokens, keys = stream()
    merged = merge_uniform(tokens, torch.ones_like(keys), 7)
    torch.testing.assert_close(weighted_mean(*pooling_weights(merged, False)), tokens.x[:, 1:].mean(1))


def test_half_of_the_patches_at_most_and_one_stays():
    fast = tiny.adapted(fv.Plan([fv.ToMe(50)]))
    trace = fast.traced(tiny.images())[1]
    assert trace.tokens == [[1 + n] * 3 for n in (8, 4, 2, 1)] and not fast.plan.data_dependent
    alone = tiny.adapted(fv.Plan([fv.SPViT(after=1, keep=0.01, package=False), fv.ToMe(3, (2, 3, 4))]))
    assert alone.traced(tiny.images())[1].tokens == [[2] * 3] * 4


def test_gradients_flow_through_merged_tokens():
    fast, images = tiny.adapted(fv.Plan([fv.ToMe(3)])).train(), tiny.images()
    fast(images).sum().backward()
    assert fast.patch_embed.proj.weight.grad.abs().max() > 0 and torch.isfinite(fast.patch_embed.proj.weight.grad).all()


@pytest.mark.parametrize(("plan", "words"), [
    ([fv.ToMe(2), fv.ATS((2,), 5)], "tome and ats.*block 2"),
    ([fv.ToMe(2), fv.ViTALiTy()], "attention of all blocks"),
    ([fv.ToMe(2, (1, 5))], "blocks 1...4"),
])
def test_plans_that_do_not_fit_are_refused(plan, words):
    with pytest.raises(fv.FoveateError, match=f"(?s){words}"):
        fv.adapt(tiny.model(), fv.Plan(plan))


def test_backbones_that_pool_their_grid_are_refused():
    with pytest.raises(fv.FoveateError, match="pit_ti_224"):
        fv.adapt(tiny.model("pit"), fv.Plan([fv.ToMe(2)]))
    with pytest.raises(fv.FoveateError, match="(?s)pit_ti_224.*pools a grid"):
        fv.adapt(tiny.model("pit"), fv.Plan([fv.ToMe(2, (1,))]))
    with pytest.raises(fv.FoveateError, match="swin_tiny"):
        fv.adapt(tiny.model("swin"), fv.Plan([fv.ToMe(2)]))
