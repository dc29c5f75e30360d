"""Fixed sparse attention: against loops over pairs in every form, its masks, what it costs and refuses."""

import pytest
import timm
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
import tiny
from command import answer
from foveate.nn.pairs import nearest

D = torch.float64
STAGES = dict(after=(1, 2), keep=(0.7, 0.4))


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words) + ".*do:")


def adapted(*others, key: str = "deit", dtype: torch.dtype = torch.float32, **settings) -> fv.AdaptiveModel:
    """The tiny model with masks of its own in every block and head, calibrated on noise."""
    fast = tiny.adapted(fv.Plan([fv.ViTCoD(**settings), *others]), key)
    fast.calibrate(dense(key), tiny.images(key, 4, seed=5))
    return fast.to(dtype)


def dense(key: str = "deit", dtype: torch.dtype = torch.float32) -> fv.AdaptiveModel:
    return fv.adapt(tiny.model(key, dtype), fv.Plan())


def naive(qkv: torch.Tensor, heads: int, places: list[int], table: torch.Tensor) -> torch.Tensor:
    """Rows [n, H * d] of one image, pair by pair; places: of each token, -1 for those without."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
    z = torch.zeros_like(q)
    for h in range(heads):
        for i, place in enumerate(places):
            seen = [j for j, other in enumerate(places) if place < 0 or other < 0 or table[h, 1 + place, 1 + other]]
            scores = torch.stack([q[h, i] @ k[h, j] / q.shape[-1] ** 0.5 for j in seen])
            weights = scores.exp() / scores.exp().sum()
            z[h, i] = sum(w * v[h, j] for w, j in zip(weights, seen))
    return z.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("select", [None, "topk", "argmax"])
def test_a_block_is_the_naive_one_packed_and_masked(select):
    fast = adapted(*([fv.SPViT(**STAGES, select=select)] if select else []), dtype=D, sparsity=0.7)
    images, attn, table = tiny.images(dtype=D), fast.blocks[2].attn, fast.vitcod.masks["3"].table
    trace = fast.traced(images)[1]
    (qkv, z), (_, masked) = tiny.watched(attn, lambda: fast(images)), tiny.watched(attn, lambda: fast.masked(images, trace))
    assert qkv.dim() == (2 if select == "argmax" else 3), "images must differ in what argmax keeps"
    lengths = trace.block_tokens[2]
    stages = [kept.sum(1).tolist() for kept in trace.kept]
    for i in range(2):
        kept = trace.kept[1][i].nonzero()[0].tolist() if select else list(range(16))
        packages = [stages[0][i] < 16, stages[1][i] < stages[0][i]] if select else []
        rows, packed = (t.split(lengths)[i] if t.dim() == 2 else t[i] for t in (qkv, z))
        want = naive(rows, attn.num_heads, [-1, *kept, *[-1] * sum(packages)], table)
        torch.testing.assert_close(packed, want, rtol=0, atol=1e-9)
        live = torch.tensor([True, *trace.kept[1][i], *packages]) if select else slice(None)
        torch.testing.assert_close(masked[i][live], packed, rtol=0, atol=1e-9)


@pytest.mark.parametrize("fused", [True, False])
def test_both_ways_to_compute_it_are_the_naive_one(fused):
    fast = adapted(dtype=D, blocks=(2,))
    attn = fast.blocks[1].attn
    attn.fused_attn = fused
    qkv, z = tiny.watched(attn, lambda: fast(tiny.images(dtype=D)))
    want = naive(qkv[0], attn.num_heads, [-1, *range(16)], fast.vitcod.masks["2"].table)
    torch.testing.assert_close(z[0], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("key", ["deit", "siglip", "eva02", "pit", "lvvit", "distilled"])
def test_a_sparsity_of_nothing_is_softmax(key):
    base, images = tiny.model(key), tiny.images(key)
    torch.testing.assert_close(fv.adapt(base, fv.Plan([fv.ViTCoD(sparsity=0)]))(images), base(images), rtol=0, atol=1e-5)


def test_every_other_prefix_token_sees_all():
    """The distilled model has two; ViTALiTy's "+kd" adds one."""
    for fast in (adapted(key="distilled", dtype=D), adapted(fv.ViTALiTy(mode="baseline+kd"), dtype=D)):
        attn = fast.blocks[0].attn
        qkv, z = tiny.watched(attn, lambda: fast(tiny.images(dtype=D)))
        want = naive(qkv[0], attn.num_heads, [-1, -1, *range(16)], fast.vitcod.masks["1"].table)
        torch.testing.assert_close(z[0], want, rtol=0, atol=1e-9)


# masks


@pytest.mark.parametrize("grid, kept", [((4, 4), 2), ((3, 5), 5), ((1, 1), 1), ((14, 14), 20)])
def test_masks_start_as_nearest_neighbours(grid, kept):
    table = nearest(grid, 2, kept)
    places = grid[0] * grid[1]
    assert table.dtype == torch.bool and table.shape == (2, 1 + places, 1 + places)
    assert table[:, 0].all() and table[:, :, 0].all() and torch.equal(table[0], table[1])
    for place in range(places):
        away = lambda other: (place // grid[1] - other // grid[1]) ** 2 + (place % grid[1] - other % grid[1]) ** 2
        want = sorted(range(places), key=lambda other: (away(other), other))[:kept]
        assert want[0] == place and table[0, 1 + place, 1:].nonzero()[:, 0].tolist() == sorted(want)


def test_the_plan_says_how_many_a_patch_sees():
    assert fv.ViTCoD().kept(196) == 20 and fv.ViTCoD(sparsity=0.999).kept(16) == 1 and fv.ViTCoD(sparsity=0).kept(16) == 16
    fast = fv.adapt(tiny.model("pit"), fv.Plan([fv.ViTCoD(sparsity=0.75)]))
    places = [block.patches for block in fast.card.blocks]
    assert len(set(places)) == 3
    for mask, patches in zip(fast.vitcod.masks.values(), places):
        assert mask.table.shape[1] == 1 + patches and set(mask.table[:, 1:, 1:].sum(-1).flatten().tolist()) == {max(1, round(patches / 4))}


@pytest.mark.parametrize("key", ["deit", "siglip", "eva02", "pit"])
def test_calibration_keeps_what_the_dense_model_attends_to_most(key):
    base, images = tiny.model(key, D), tiny.images(key, 5, dtype=D)
    fast = fv.adapt(base, fv.Plan([fv.ViTCoD(sparsity=0.7), fv.SPViT(after=(1,), keep=(0.5,))]))
    whole, maps = dense(key, D), {}

    def looking(block):
        def mix(q, k, v, tokens, scale, *settings):
            maps[block] = torch.einsum("bihd,bjhd->bhij", q, k).mul(scale).softmax(-1)[..., tokens.prefix :, tokens.prefix :].mean(0)
            return whole.anatomy.attend(q, k, v, tokens, scale, *settings)
        return mix

    with torch.no_grad():
        tokens = whole.anatomy.stem(images)
        for block in range(1, whole.card.depth + 1):
            tokens = whole.anatomy.block(block, tokens, looking(block))
    fast.calibrate(whole, [images[:2], images[2:]])
    tables = []
    for block, mean in maps.items():
        mask = fast.vitcod.masks[str(block)]
        assert int(mask.images) == 5 and mask.table[:, 0].all() and mask.table[:, :, 0].all()
        for h in range(len(mean)):
            for i, row in enumerate(mean[h].tolist()):
                others = sorted((j for j in range(len(row)) if j != i), key=lambda j: -row[j])[: mask.kept - 1]
                assert mask.table[h, 1 + i, 1:].nonzero()[:, 0].tolist() == sorted([i, *others])
        tables.append(mask.table)
    assert not torch.equal(tables[0], nearest(fast.card.blocks[0].grid, len(tables[0]), fast.vitcod.masks["1"].kept))
    fast.calibrate(whole, images)
    assert all(torch.equal(mask.table, table) for mask, table in zip(fast.vitcod.masks.values(), tables)), "batches do not matter"


def test_calibration_leaves_weights_and_mode_alone():
    fast = tiny.adapted(fv.Plan([fv.ViTCoD(), fv.PIVOT(skip=(2,))])).train()
    before = {name: value.clone() for name, value in fast.named_parameters()}
    fast.calibrate(dense(), tiny.images())
    assert fast.training and all(torch.equal(value, before[name]) for name, value in fast.named_parameters())
    assert fast.calibrates and not tiny.adapted(fv.Plan([fv.SPViT(**STAGES)])).calibrates


def test_calibration_refuses_no_images_and_what_is_not_finite():
    fast = tiny.adapted(fv.Plan([fv.ViTCoD()]))
    with refused("0 images", "vitcod"):
        fast.calibrate(dense(), [])
    with refused("deit_tiny_patch16_224", "not finite"):
        fast.calibrate(dense(), tiny.images() * torch.nan)
    for other, name in ((dense("eva02"), "eva02"), (fast, "vitcod"), (tiny.model(), "VisionTransformer")):
        with refused(name, "deit_tiny_patch16_224 under the empty plan"):
            fast.calibrate(other, tiny.images())
    assert int(fast.vitcod.masks["1"].images) == 0


def test_adapt_calibrates_before_it_trains(capsys, tmp_path):
    base, out = fv.save(timm.create_model("deit_tiny_patch16_224", **tiny.VIT | dict(num_classes=2)), tmp_path / "base"), tmp_path / "run"
    folder = tmp_path / "images"
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()).save(folder / split / name / f"{number}.png")
    command = ["adapt", base, "--plan", "vitcod()", "--data-dir", folder, "--split", "train+validation", "--epochs", 1, "--batch-size", 4, "--device", "cpu"]
    answer(capsys, *command, "--steps", 1, "--out", out)
    assert [int(mask.images) for mask in fv.load(out).vitcod.masks.values()] == [8] * 4


def test_masks_are_saved(tmp_path):
    fast, images = adapted(fv.SPViT(**STAGES)), tiny.images()
    back = fv.load(fv.save(fast, tmp_path))
    for number, mask in fast.vitcod.masks.items():
        assert torch.equal(back.vitcod.masks[number].table, mask.table) and int(back.vitcod.masks[number].images) == 4
    assert torch.equal(back(images), fast(images))
    assert fv.restore(back).state_dict().keys() == tiny.model().state_dict().keys()


def test_calibrated_masks_move_to_plans_of_their_own_sparsity_only():
    fast, images = adapted(blocks=(1, 2)), tiny.images()
    wider = fv.replan(fast, fv.Plan([fv.ViTCoD(), fv.SPViT(**STAGES)]))
    assert [int(mask.images) for mask in wider.vitcod.masks.values()] == [4, 4, 0, 0]
    assert torch.equal(wider.vitcod.masks["2"].table, fast.vitcod.masks["2"].table)
    with refused("sees 2 of 16", "lets it see 8", "own sparsity"):
        fv.replan(fast, fv.Plan([fv.ViTCoD(sparsity=0.5)]))
    neighbours = fv.replan(tiny.adapted(fv.Plan([fv.ViTCoD()])), fv.Plan([fv.ViTCoD(sparsity=0.5)]))
    assert torch.equal(neighbours(images), tiny.adapted(fv.Plan([fv.ViTCoD(sparsity=0.5)]))(images))


# training, graphs, counts


def test_a_training_step_reaches_every_weight():
    fast = adapted().train()
    fast(tiny.images()).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in fast.parameters() if p.numel() > 1)


def test_attention_dropout_applies_to_what_is_kept():
    fast = fv.adapt(timm.create_model("deit_tiny_patch16_224", **tiny.VIT, attn_drop_rate=0.5), fv.Plan([fv.ViTCoD()]))
    for fused in (True, False):
        for block in fast.blocks:
            block.attn.fused_attn = fused
        torch.manual_seed(0)
        first = fast.train()(tiny.images())
        assert not torch.equal(first, fast(tiny.images())) and torch.equal(fast.eval()(tiny.images()), fast(tiny.images()))


def test_a_static_plan_exports():
    fast, images = adapted(fv.SPViT(after=(1,), keep=(0.5,))), tiny.images(count=5)
    graph = torch.export.export(fast, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(images), fast(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["deit", "eva02", "pit"])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_count_is_what_ran(key, pruned):
    fast = tiny.adapted(fv.Plan([fv.ViTCoD(), *[fv.SPViT(after=(1,), keep=(0.5,))] * (pruned and key != "pit")]), key).requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trace = fast.traced(tiny.images(key, 1))[1]
    ledger = fv.count(fast, trace=trace)
    assert ledger.macs == counter.get_total_flops() / 2 and ledger.params == sum(p.numel() for p in fast.parameters())


def test_nothing_is_saved_where_there_are_no_sparse_products():
    name, plan = "deit_small_patch16_224", "vitcod(blocks=[2])"
    dense, sparse = fv.count(name), fv.count(name, plan)
    assert sparse.macs == dense.macs and sparse.params == dense.params
    more = [o for o in sparse.operations if o not in dense.operations]
    assert [(o.kind, o.origin, o.m, o.n, o.times) for o in more] == [("elementwise", "blocks.2.attn.mask", 197, 197, 6)]
    both = fv.count(name, "vitcod() + spvit(after=[3], keep=[0.6])")
    gathered = [o for o in both.operations if o.origin.endswith("attn.pairs")]
    assert [o.block for o in gathered] == list(range(4, 13)) and gathered[0].m == 120


# refusals


@pytest.mark.parametrize("key", ["swin", "levit", "mobilevit"])
def test_attention_that_is_no_map_of_all_patches_is_refused(key):
    with refused("vitcod", tiny.ALL[key][0], "windows, pixel groups"):
        fv.adapt(tiny.model(key), fv.Plan([fv.ViTCoD()]))


def test_other_sets_of_tokens_are_refused():
    fast = tiny.adapted(fv.Plan([fv.ViTCoD()]), "dynamic")
    fast(tiny.images("dynamic"))
    with refused("36 patches of a 6x6 grid", "all 16 of 4x4: its masks"):
        fast(torch.randn(1, 3, 48, 48))
    dropping = fv.adapt(timm.create_model("deit_tiny_patch16_224", **tiny.VIT, patch_drop_rate=0.25), fv.Plan([fv.ViTCoD()]))
    with refused("12 patches of a 4x4 grid", "all 16"):
        dropping.train()(tiny.images())


def test_blocks_are_those_of_the_backbone_and_taken_once():
    with refused("vitcod", "blocks 1...4"):
        fv.adapt(tiny.model(), fv.Plan([fv.ViTCoD(blocks=(5,))]))
    with refused("vitcod", "vitality", "all blocks"):
        fv.adapt(tiny.model(), fv.Plan([fv.ViTCoD(), fv.ViTALiTy()]))
