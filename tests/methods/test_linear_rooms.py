"""Linformer, Performer, Linear Transformer and Efficient Attention as methods: against loops in every form, what they cost and refuse."""

import dataclasses
import math
import warnings

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from foveate.methods.linformer.layers import neighbour_means
from naive import linear as naive

ROOMS = {
    "linformer": fv.Linformer(rank=4),
    "performer": fv.Performer(features=6),
    "lineartransformer": fv.LinearTransformer(),
    "efficient": fv.Efficient(),
}
CONVOLUTIONAL = ("levit", "mobilevit")


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words) + ".*do:")


def first_two(key: str, room: str) -> tuple[fv.AdaptiveModel, torch.Tensor]:
    """A convolutional model with `room` in its first two blocks, in float64, and images for it."""
    return tiny.adapted(fv.Plan([with_blocks(room, (1, 2))]), key, torch.float64), tiny.images(key, 2, dtype=torch.float64)


def with_blocks(room: str, blocks: tuple[int, ...]):
    """The room's settings for `blocks` only."""
    return dataclasses.replace(ROOMS[room], blocks=blocks)


def head(room: str, fast: fv.AdaptiveModel, block: int, columns: list[int]):
    """The naive attention of one head of `block`, whose tokens own `columns` of E and F."""
    hooks = fast.get_submodule(room)
    scale = fast.card.block(block).head_dim ** -0.5
    if room == "linformer":
        e, f = hooks.projections[str(block)].detach()[..., columns]
        return lambda q, k, v, live: naive.linformer(q, k, v, scale, e, f, live)
    if room == "performer":
        return lambda q, k, v, live: naive.performer(q, k, v, scale, hooks.get_buffer(f"directions_{block}"), live)
    return {"lineartransformer": naive.linear_transformer, "efficient": naive.efficient}[room]


def expected(function, qkv: torch.Tensor, heads: int, widths: tuple[int, ...] | None = None, step: int = 1) -> torch.Tensor:
    """Every `step`-th of the rows [n, H * e] of one image from its projections [n, 3 * H * d], or [n, H * (d + d + e)] for LeViT's widths (d, d, e)."""
    parts = qkv.unflatten(-1, (heads, -1)).transpose(0, 1).split(widths, -1) if widths else qkv.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
    return torch.stack([function(q[::step], k, v, qkv.new_ones(len(qkv))) for q, k, v in zip(*parts)], 1).flatten(1)


@pytest.mark.parametrize("select", ["topk", "argmax"])
@pytest.mark.parametrize("room", ROOMS)
def test_a_block_behind_pruning_is_the_naive_one_packed_and_masked(room, select):
    fast = tiny.adapted(fv.Plan([fv.SPViT(after=(1, 2), keep=(0.7, 0.4), select=select), ROOMS[room]]), dtype=torch.float64)
    images, attn, places = tiny.images(dtype=torch.float64), fast.blocks[2].attn, 16
    trace = fast.traced(images)[1]
    (qkv, z), (_, masked) = tiny.watched(attn, lambda: fast(images)), tiny.watched(attn, lambda: fast.masked(images, trace))
    assert qkv.dim() == (2 if select == "argmax" else 3), "images must differ in what argmax keeps"
    lengths, stages = trace.tokens[1], [kept.sum(1).tolist() for kept in trace.kept]
    for i, length in enumerate(lengths[:2]):
        kept = trace.kept[1][i].nonzero()[0].tolist()
        packages = [stages[0][i] < places, stages[1][i] < stages[0][i]]
        assert length == 1 + len(kept) + sum(packages) and any(packages)
        columns = [0, *(1 + place for place in kept), *[1 + places] * sum(packages)]
        rows, packed = (t.split(lengths)[i] if t.dim() == 2 else t[i] for t in (qkv, z))
        want = expected(head(room, fast, 3, columns), rows, attn.num_heads)
        torch.testing.assert_close(packed, want, rtol=0, atol=1e-9)
        live = torch.tensor([True, *trace.kept[1][i], *packages])
        torch.testing.assert_close(masked[i][live], packed, rtol=0, atol=1e-9)


@pytest.mark.parametrize("room", ROOMS)
def test_levit_attends_without_its_score_biases(room):
    fast, images = first_two("levit", room)
    attn, logits = fast.anatomy.blocks[0].attn, []
    qkv, z = tiny.watched(attn, lambda: logits.append(fast(images)))
    want = expected(head(room, fast, 1, list(range(25))), qkv[0], attn.num_heads, (attn.key_dim, attn.key_dim, attn.val_dim), step=5)
    torch.testing.assert_close(z[0, ::5], want, rtol=0, atol=1e-9)
    with torch.no_grad():
        attn.attention_biases.add_(torch.randn_like(attn.attention_biases))
        assert torch.equal(fast(images), logits[0])


@pytest.mark.parametrize("room", ROOMS)
def test_mobilevit_attends_within_its_pixel_groups(room):
    fast, images = first_two("mobilevit", room)
    attn = fast.anatomy.blocks[0].attn
    qkv, z = tiny.watched(attn, lambda: fast(images))
    assert qkv.shape[:2] == (2 * 4, 32)
    want = expected(head(room, fast, 1, list(range(32))), qkv[6], attn.num_heads, step=8)
    torch.testing.assert_close(z[6, ::8], want, rtol=0, atol=1e-9)


# counts


def check_count(fast: fv.AdaptiveModel, images: torch.Tensor) -> None:
    fast.requires_grad_(False)
    for image in images:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, trace = fast.traced(image[None])
        ledger = fv.count(fast, trace=trace)
        summed = ledger.by_operation().get("package", 0) if fast.plan.data_dependent else 0  # by scattered addition, not by a product
        assert ledger.macs == counter.get_total_flops() / 2 + summed
    assert ledger.params == sum(p.numel() for p in fast.parameters())


@pytest.mark.parametrize("key", ["deit", "eva02", "pit"])
@pytest.mark.parametrize("room", ROOMS)
def test_the_count_is_what_ran(room, key):
    check_count(tiny.adapted(fv.Plan([ROOMS[room]]), key), tiny.images(key, 1))
    if key != "pit":  # there a trace without masks only bounds what lives behind a pooling
        check_count(tiny.adapted(fv.Plan([ROOMS[room], fv.SPViT(after=(1,), keep=(0.5,), select="argmax")]), key), tiny.images(key, 2))


@pytest.mark.parametrize("key", CONVOLUTIONAL)
@pytest.mark.parametrize("room", ROOMS)
def test_the_count_is_what_ran_in_convolutional_models(room, key):
    fast, images = first_two(key, room)
    check_count(fast, images[:1])


def test_processors_of_table_6():
    """Beside the products: exponentials and divisions in softmaxes, or with additions behind a kernel."""
    kinds = {}
    for name, room in ROOMS.items():
        operations = fv.count("deit_tiny_patch16_224", fv.Plan([room])).operations
        inner = [o for o in operations if o.origin.startswith("blocks.1.attn.") and not o.origin.endswith((".qkv", ".proj"))]
        kinds[name] = {o.kind for o in inner} - {"gemm"}
    assert kinds == {
        "linformer": {"softmax"}, "efficient": {"softmax"},
        "performer": {"exp", "divide", "add", "sum", "elementwise"}, "lineartransformer": {"exp", "divide", "add", "sum"},
    }


def test_costs_grow_linearly_with_the_tokens():
    """Doubling rank or features doubles what depends on them: 4 n r d a head (and r n for Performer's denominators)."""
    def inner(room):
        operations = fv.count("deit_tiny_patch16_224", fv.Plan([room])).operations
        return sum(o.macs for o in operations if ".attn." in o.origin and not o.origin.endswith((".qkv", ".proj")))

    assert inner(fv.Linformer(rank=49)) == 36 * 4 * 197 * 49 * 64
    assert inner(fv.Performer(features=32)) == 36 * (4 * 197 * 32 * 64 + 197 * 32)
    assert inner(fv.LinearTransformer()) == 36 * (2 * 197 * 64 * 64 + 197 * 64)
    assert inner(fv.Efficient()) == 36 * 2 * 197 * 64 * 64
    assert inner(fv.Performer()) > inner(fv.Performer(features=197)) > 36 * 2 * 197 * 197 * 64, "at 197 tokens softmax is cheaper"


# Linformer


@pytest.mark.parametrize("key, blocks", [("deit", "all"), ("pit", (1, 2))])
def test_linformer_of_full_rank_starts_as_softmax(key, blocks):
    base = tiny.model(key)
    card = fv.adapt(base, fv.Plan()).card
    fast = fv.adapt(base, fv.Plan([fv.Linformer(rank=card.prefix_tokens + card.blocks[0].patches, blocks=blocks)]))
    torch.testing.assert_close(fast(tiny.images(key)), base(tiny.images(key)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank, tokens", [(1, 1), (1, 17), (4, 17), (16, 17), (17, 17), (64, 197)])
def test_projections_start_as_means_of_neighbours(rank, tokens):
    start = neighbour_means(rank, tokens)
    members = start[:, :-1] > 0
    assert start.shape == (rank, tokens + 1) and (members.sum(0) == 1).all()
    assert members.sum(1).max() - members.sum(1).min() <= 1
    torch.testing.assert_close(start[:, :-1].sum(1), torch.ones(rank))
    torch.testing.assert_close(start[:, -1], torch.full((rank,), 1 / tokens))


def test_the_last_column_is_for_tokens_without_a_place():
    whole, pruned = fv.Plan([ROOMS["linformer"]]), fv.Plan([ROOMS["linformer"], fv.SPViT(after=(1,), keep=(0.5,))])
    added = fv.Plan([fv.ViTALiTy(mode="baseline+kd"), ROOMS["linformer"]])
    for plan, used in ((whole, False), (pruned, True), (added, True)):
        fast, images = tiny.adapted(plan), tiny.images()
        before = fast(images)
        with torch.no_grad():
            for projection in fast.linformer.projections.values():
                projection[..., -1] += 1
        assert torch.equal(fast(images), before) != used


def test_linformer_refuses_other_sets_of_tokens():
    fast = tiny.adapted(fv.Plan([ROOMS["linformer"]]), "dynamic")
    fast(tiny.images("dynamic"))
    with refused("36 patches of a 6x6 grid", "4x4"):
        fast(torch.randn(1, 3, 48, 48))
    with refused("16 patches of a 2x8 grid", "4x4"):
        fast(torch.randn(1, 3, 16, 64))
    dropping = fv.adapt(timm.create_model("deit_tiny_patch16_224", **tiny.VIT, patch_drop_rate=0.25), fv.Plan([ROOMS["linformer"]]))
    with refused("12 patches of a 4x4 grid", "all 16"):
        dropping.train()(tiny.images())
    dropping.eval()(tiny.images())


def test_a_rank_beyond_the_tokens_is_refused():
    with refused(r"linformer\(rank=18\)", "1 to 17", "block 1"):
        fv.adapt(tiny.model(), fv.Plan([fv.Linformer(rank=18)]))
    with refused("rank=8", "1 to 5", "block 4"):
        fv.adapt(tiny.model("pit"), fv.Plan([fv.Linformer(rank=8)]))
    with refused("rank=33", "1 to 32", "block 1"):
        fv.adapt(tiny.model("mobilevit"), fv.Plan([fv.Linformer(rank=33, blocks=(1,))]))


def test_columns_follow_their_tokens_in_traced_graphs():
    fast, images = tiny.adapted(fv.Plan([ROOMS["linformer"], fv.SPViT(after=(1,), keep=(0.5,), select="argmax")])), tiny.images(count=5)
    assert len(set(fast.traced(images)[1].tokens[0])) > 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(fast, (images[:1],), check_trace=False)
        for image in images:
            torch.testing.assert_close(graph(image[None]), fast(image[None]), rtol=0, atol=1e-5)


# Performer


def test_directions_belong_to_the_seed_and_are_saved(tmp_path):
    directions = lambda **kw: dict(fv.adapt(tiny.model(), fv.Plan([fv.Performer(**kw)])).performer.named_buffers())
    first, again, other = directions(seed=1), directions(seed=1), directions(seed=2)
    assert list(first) == [f"directions_{n}" for n in (1, 2, 3, 4)]
    assert all(torch.equal(first[n], again[n]) and not torch.equal(first[n], other[n]) for n in first)
    assert not torch.equal(first["directions_1"], first["directions_2"])
    fast = tiny.adapted(fv.Plan([fv.Performer(seed=1)]))
    fast.performer.directions_2.add_(0.1)
    back = fv.load(fv.save(fast, tmp_path))
    assert torch.equal(back.performer.directions_2, fast.performer.directions_2)
    with torch.no_grad():
        assert torch.equal(back(tiny.images()), fast(tiny.images()))


def test_features_grow_as_d_log_d():
    assert [fv.Performer().features_of(d) for d in (1, 8, 64)] == [1, 17, 266] == [max(1, round(d * math.log(d))) for d in (1, 8, 64)]
    assert fv.Performer(features=3).features_of(64) == 3


def test_more_features_come_closer_to_softmax():
    base, images = tiny.model(), tiny.images()
    with torch.no_grad():
        errors = [(fv.adapt(base, fv.Plan([fv.Performer(features=r)]))(images) - base(images)).abs().max() for r in (4, 64, 4096)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.1 * base(images).abs().max()


# plans


@pytest.mark.parametrize("room", ROOMS)
def test_shifted_windows_are_refused(room):
    with refused(room, "shifted windows"):
        fv.adapt(tiny.model("swin"), fv.Plan([ROOMS[room]]))


@pytest.mark.parametrize("room", ROOMS)
def test_blocks_beyond_the_depth_are_refused(room):
    with refused(room, "blocks 1...4"):
        fv.adapt(tiny.model(), fv.Plan([with_blocks(room, (5,))]))


def test_several_attentions_share_a_model_block_by_block():
    plan = fv.Plan([fv.Linformer(rank=4, blocks=(1,)), fv.Performer(features=6, blocks=(2,)), fv.Efficient(blocks=(4,)), fv.LinearTransformer()])
    check_count(tiny.adapted(plan), tiny.images(count=1))
    with refused("linformer", "performer", "attention of block 2"):
        fv.adapt(tiny.model(), fv.Plan([fv.Linformer(rank=4, blocks=(1, 2)), fv.Performer(blocks=(2,))]))
    with refused("efficient", "vitality", "all blocks"):
        fv.adapt(tiny.model(), fv.Plan([fv.Efficient(), fv.ViTALiTy()]))


def test_all_blocks_are_those_that_no_other_method_names():
    plan = fv.Plan([fv.Linformer(rank=4), fv.PIVOT(skip=(2,)), fv.SPViT(after=3, keep=0.5)])
    fast = fv.adapt(tiny.model(), plan)
    assert set(fast.linformer.projections) == {"1", "3", "4"}
    assert fv.count(fast).params == sum(p.numel() for p in fast.parameters() if p.requires_grad)
    assert fast.plan == plan
    fast.train().training_outputs(tiny.images()).logits.sum().backward()
    assert all(p.grad is not None for p in fast.linformer.parameters())


def test_a_rank_may_exceed_the_tokens_of_blocks_that_another_method_takes():
    fast = fv.adapt(tiny.model("levit"), fv.Plan([fv.Linformer(rank=25), fv.ViTALiTy(blocks=(4, 5, 6))]))
    assert [fast.card.block(number).patches for number in (1, 2, 3, 4)] == [25, 25, 25, 9]
    with refused("linformer", "block 4"):
        fv.adapt(tiny.model("levit"), fv.Plan([fv.Linformer(rank=25)]))
