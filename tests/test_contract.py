"""The contract: what holds for every method (rows) and backbone, whoever wrote it (house.md)."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import foveate as fv
import tiny

STAGES = dict(after=(1, 3), keep=(0.7, 0.4))
ROWS = {
    "nothing": lambda: [],
    "topk": lambda: [fv.SPViT(**STAGES)],
    "topk-bare": lambda: [fv.SPViT(**STAGES, package=False)],
    "argmax": lambda: [fv.SPViT(**STAGES, select="argmax")],
    "argmax-bare": lambda: [fv.SPViT(**STAGES, select="argmax", package=False)],
    "light-package": lambda: [fv.SPViT(**STAGES, select="argmax", package_weight=0.25)],
    "random": lambda: [fv.Random(**STAGES)],
    "random-bare": lambda: [fv.Random(**STAGES, package=False)],
    "structure": lambda: [fv.Structure(keep=0.5)],
    "topk+structure": lambda: [fv.SPViT(**STAGES), fv.Structure(keep=0.7, blocks=(2, 3))],
    "structure+argmax": lambda: [fv.Structure(keep=0.7), fv.SPViT(**STAGES, select="argmax")],
    "argmax+random": lambda: [fv.SPViT(after=(1,), keep=(0.7,), select="argmax"), fv.Random(after=(3,), keep=(0.4,))],
    "vitality": lambda: [fv.ViTALiTy()],
    "vitality-some": lambda: [fv.ViTALiTy(blocks=(2, 4))],
    "vitality-kd": lambda: [fv.ViTALiTy(mode="vitality+kd")],
    "sparse": lambda: [fv.ViTALiTy(mode="sparse", threshold=0.1)],
    "lowrank+sparse": lambda: [fv.ViTALiTy(mode="lowrank+sparse", threshold=0.1)],
    "vitality+topk": lambda: [fv.ViTALiTy(), fv.SPViT(**STAGES)],
    "vitality+argmax": lambda: [fv.SPViT(**STAGES, select="argmax"), fv.ViTALiTy()],
    "vitality-kd+argmax": lambda: [fv.ViTALiTy(mode="vitality+kd"), fv.SPViT(**STAGES, select="argmax")],
    "sparse+argmax": lambda: [fv.ViTALiTy(mode="lowrank+sparse", threshold=0.1), fv.SPViT(**STAGES, select="argmax")],
    "linformer": lambda: [fv.Linformer(rank=4)],
    "performer": lambda: [fv.Performer()],
    "lineartransformer": lambda: [fv.LinearTransformer()],
    "efficient": lambda: [fv.Efficient()],
    "linformer+argmax": lambda: [fv.Linformer(rank=4), fv.SPViT(**STAGES, select="argmax")],
    "performer+topk": lambda: [fv.SPViT(**STAGES), fv.Performer()],
    "vitcod": lambda: [fv.ViTCoD()],
    "vitcod+topk": lambda: [fv.ViTCoD(), fv.SPViT(**STAGES)],
    "vitcod+argmax": lambda: [fv.SPViT(**STAGES, select="argmax"), fv.ViTCoD(sparsity=0.7)],
    "pivot": lambda: [fv.PIVOT(skip=(2, 3))],
    "pivot-some": lambda: [fv.PIVOT(skip=(2, 4))],
    "pivot+topk": lambda: [fv.PIVOT(skip=(2, 3)), fv.SPViT(**STAGES)],
    "pivot+argmax": lambda: [fv.SPViT(**STAGES, select="argmax"), fv.PIVOT(skip=(2, 3))],
    "pivot+vitality": lambda: [fv.PIVOT(skip=(2, 3)), fv.ViTALiTy()],
    "topk-late": lambda: [fv.SPViT(after=(3,), keep=(0.4,))],
    "argmax-late+vitality": lambda: [fv.ViTALiTy(), fv.SPViT(after=(3,), keep=(0.4,), select="argmax")],
    "exits": lambda: [fv.EarlyExit(after=(1, 2, 3))],
    "exits-entropy": lambda: [fv.EarlyExit(after=(1, 3), gate="entropy")],
    "exits-patience": lambda: [fv.EarlyExit(after=(1, 2, 3, 4), gate="patience", threshold=1)],
    "exits+topk": lambda: [fv.SPViT(**STAGES), fv.EarlyExit(after=(1, 3))],
    "exits+argmax": lambda: [fv.EarlyExit(after=(1, 2, 3)), fv.SPViT(**STAGES, select="argmax")],
    "exits+vitality": lambda: [fv.ViTALiTy(), fv.EarlyExit(after=(1, 2, 3), gate="margin")],
    "exits+pivot": lambda: [fv.EarlyExit(after=(2, 3)), fv.PIVOT(skip=(2, 3))],
    "exits+argmax+vitality": lambda: [fv.ViTALiTy(), fv.SPViT(**STAGES, select="argmax"), fv.EarlyExit(after=(1, 2, 3))],
    "evit": lambda: [fv.EViT(**STAGES)],
    "evit-bare": lambda: [fv.EViT(**STAGES, fuse=False)],
    "evit+vitality": lambda: [fv.ViTALiTy(), fv.EViT(**STAGES)],
    "evit+pivot": lambda: [fv.EViT(**STAGES), fv.PIVOT(skip=(2, 3))],
    "tome": lambda: [fv.ToMe(r=3)],
    "tome+argmax": lambda: [fv.ToMe(r=2), fv.SPViT(**STAGES, select="argmax")],
    "tome+pivot": lambda: [fv.PIVOT(skip=(2, 3)), fv.ToMe(r=3)],
    "tome+ats": lambda: [fv.ATS(after=(1, 2), tokens=9), fv.ToMe(r=1, blocks=(3, 4))],
    "ats": lambda: [fv.ATS(after=(1, 2, 4), tokens=9)],
    "ats+vitality": lambda: [fv.ATS(after=(2, 4), tokens=0.5), fv.ViTALiTy()],
    "exits+tome": lambda: [fv.ToMe(r=3), fv.EarlyExit(after=(1, 2, 3))],
    "exits+evit": lambda: [fv.EViT(**STAGES), fv.EarlyExit(after=(1, 3))],
    "exits+ats": lambda: [fv.EarlyExit(after=(1, 2, 3)), fv.ATS(after=(1, 2, 4), tokens=9)],
    "structure+pivot+random": lambda: [fv.Structure(keep=0.7), fv.PIVOT(skip=(1, 4)), fv.Random(after=(2,), keep=(0.5,))],
}
# On models that widen their tokens only.
FORGETTING = {
    "iret": lambda: [fv.IRET(threshold=0.055)],
    "iret-late": lambda: [fv.IRET(threshold=(0.0, 0.06), focus=False)],
    "iret+vitality": lambda: [fv.IRET(threshold=0.055, samples=1), fv.ViTALiTy()],
    "iret+pivot": lambda: [fv.PIVOT(skip=(2, 3)), fv.IRET(threshold=0.055)],
    "iret+topk": lambda: [fv.IRET(threshold=0.055), fv.SPViT(after=(3,), keep=(0.4,))],
    "iret+argmax": lambda: [fv.SPViT(after=(3,), keep=(0.4,), select="argmax"), fv.IRET(threshold=0.055)],
    "iret+exits": lambda: [fv.IRET(threshold=0.055), fv.EarlyExit(after=(1, 2, 3))],
}
PRUNING = [row for row in ROWS if any(m.prunes for m in ROWS[row]())]
SELECTED = [row for row in PRUNING if any(m.name == "spvit" for m in ROWS[row]())]  # the others have nothing to learn
EXITS = [row for row in ROWS if row.startswith("exits")]
EVERYWHERE = ("topk", "argmax", "argmax-bare", "light-package", "random", "vitality", "vitality+argmax", "pivot", "pivot+argmax", "exits", "exits+argmax")
UNSTEADY = ("sparse", "lowrank+sparse", "sparse+argmax")  # which pairs exceed T depends on the last bit of a 4-bit rounding
LINEAR = ("linformer", "performer", "lineartransformer", "efficient", "linformer+argmax", "performer+topk")
REFUSED = {("swin", "vitality"), ("swin", "vitality+argmax")}  # shifted windows forbid pairs
TABLE = [(row, "deit") for row in ROWS]
TABLE += [(row, key) for key in tiny.MODELS if key != "deit" for row in EVERYWHERE if (key, row) not in REFUSED]
TABLE += [(row, key) for row in (*LINEAR, "vitcod", "vitcod+topk", "vitcod+argmax") for key in ("siglip", "eva02", "pit")]
TABLE += [(row, key) for key in tiny.WIDENING for row in ("nothing", "structure", "vitality", "pivot-some", "topk-late", "argmax-late+vitality", "exits")]
TABLE += [(row, key) for row in ("evit", "ats", "exits+ats") for key in ("distilled", "dinov2-registers", "eva02", "lvvit")]
TABLE += [(row, key) for row in ("tome", "tome+argmax") for key in ("dinov2-registers", "siglip", "siglip-gap", "no-class", "eva02", "lvvit")]
TABLE += [(row, "iret") for row in ("tome", "ats", "tome+ats")]
TABLE += [(row, key) for key in tiny.ATTENTION_ONLY for row in ("nothing", "vitality", "vitality-some", "pivot-some", "exits")]
TABLE += [(row, "iret") for row in FORGETTING] + [("iret", key) for key in tiny.WIDENING if key != "iret"]
BATCH_NORM = {"lvvit", "iret", *tiny.ATTENTION_ONLY}  # which works on the batch in training


def plan_of(row: str) -> fv.Plan:
    return fv.Plan((ROWS | FORGETTING)[row]())


def adapted(row: str, key: str = "deit", dtype: torch.dtype = torch.float32) -> fv.AdaptiveModel:
    return tiny.adapted(plan_of(row), key, dtype)


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 5e-6) -> None:
    """Equal up to rounding: relative to the largest value."""
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


# idle equals timm


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("key", tiny.ALL)
def test_the_empty_plan_is_timm_bit_for_bit(key, dtype, training):
    base, images = tiny.model(key, dtype), tiny.images(key, dtype=dtype)
    idle = fv.adapt(base, fv.Plan([]))
    base.train(training), idle.train(training)
    torch.manual_seed(3)
    expected = base(images)
    torch.manual_seed(3)
    ours = idle(images)
    for one, other in zip(*[(y,) if torch.is_tensor(y) else y for y in (ours, expected)], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert list(idle.state_dict()) == list(base.state_dict())


def test_the_empty_plan_repeats_timms_dice_in_training():
    drops = dict(drop_rate=0.2, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3, patch_drop_rate=0.25)
    base = timm.create_model("deit_tiny_patch16_224", **tiny.VIT, **drops).train()
    idle, images = fv.adapt(base, fv.Plan([])), tiny.images()
    torch.manual_seed(5)
    expected = base(images)
    torch.manual_seed(5)
    assert torch.equal(idle(images), expected)
    torch.manual_seed(6)
    assert not torch.equal(idle(images), expected)


def test_the_empty_plan_takes_other_sizes_where_timm_does():
    base = tiny.model("dynamic")
    idle, images = fv.adapt(base, fv.Plan([])), torch.randn(2, 3, 48, 24)
    assert torch.equal(idle(images), base(images))


@pytest.mark.parametrize("name", [
    "deit_small_patch16_224", "deit_base_distilled_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_224",
    "vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224",
])
def test_real_configurations_run_at_full_depth_on_the_meta_device(name):
    with torch.device("meta"):
        base = timm.create_model(name).eval()
        images = torch.empty(2, 3, *base.patch_embed.img_size)
    idle = fv.adapt(base, fv.Plan([]))
    assert idle.card.depth == len(base.blocks) and idle(images).shape == base(images).shape
    fast = fv.adapt(base, fv.Plan([fv.SPViT(after=(3, 6, 9), keep=(0.7, 0.49, 0.343))]))
    assert fast(images).shape == base(images).shape
    assert fast.train()(images).shape == base(images).shape


# masked equals packed


@pytest.mark.parametrize("row, key", TABLE)
def test_masked_equals_packed_under_replayed_decisions(row, key):
    fast, images = adapted(row, key), tiny.images(key)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        same(fast.masked(images, trace), logits)
        again, repeated = fast.traced(images, decisions=trace)
        same(again, logits)
        same(fast(images), logits)
        if key not in BATCH_NORM:
            same(fast.train().masked(images, trace), logits)
    assert repeated.tokens == trace.tokens and repeated.block_tokens == trace.block_tokens
    if row in EXITS:
        assert len(set(trace.exits)) > 1 and repeated.exits == trace.exits, "all images leave at one place: this test shows nothing"
    if row in (*PRUNING, *FORGETTING):
        assert min(filter(None, trace.tokens[-1])) < fast.card.prefix_tokens + fast.card.blocks[0].patches, "nothing was pruned: this test shows nothing"
        assert not torch.allclose(logits, tiny.model(key)(images), atol=1e-4)


@pytest.mark.parametrize("row", ["topk", "argmax", "argmax-bare", "random", "structure+argmax"])
@pytest.mark.parametrize("key", ["deit", "siglip", "no-class"])
def test_masked_equals_packed_under_decisions_of_another_kind(row, key):
    """Replayed decisions need not be the method's own: any nested counts, one survivor included."""
    fast, images = adapted(row, key), tiny.images(key)
    with torch.no_grad():
        _, trace = adapted("argmax", key).traced(images)
        _, few = adapted("argmax", key).traced(images)
        for kept in few.kept:
            kept[:] = False
            kept[:, 5] = True
        for decisions in (trace.shuffled(4), few):
            logits, ran = fast.traced(images, decisions=decisions)
            same(fast.masked(images, decisions), logits)
            assert [k.sum(1).tolist() for k in ran.kept] == [k.sum(1).tolist() for k in decisions.kept]


@pytest.mark.parametrize("row", ["topk", "argmax", "argmax-bare"])
def test_masked_equals_packed_in_bfloat16(row):
    fast, images = adapted(row, dtype=torch.bfloat16), tiny.images(dtype=torch.bfloat16)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        assert logits.dtype == torch.bfloat16
        same(fast.masked(images, trace).float(), logits.float(), 0.03)


# batch of one equals batch of n


@pytest.mark.parametrize("row, key", TABLE)
def test_a_batch_of_one_equals_a_batch_of_n(row, key):
    fast, images = adapted(row, key), tiny.images(key)
    with torch.no_grad():
        logits, trace = fast.traced(images)
        for i, image in enumerate(images):
            alone, own = fast.traced(image[None])
            same(alone[0], logits[i])
            assert own.tokens == [[stage[i]] for stage in trace.tokens]
            assert own.exits == trace.exits[i : i + 1] and own.block_tokens == [[block[i]] for block in trace.block_tokens]
            assert all((k[0] == t[i]).all() for k, t in zip(own.kept, trace.kept))


def test_free_decisions_of_both_forms_agree():
    """The masked form decides like the packed one where no score is near its threshold (semantics.md 2)."""
    for row in ("topk", "argmax", "random"):
        fast, images = adapted(row), tiny.images()
        with torch.no_grad():
            same(fast.training_outputs(images).logits, fast(images))


# JSON


@pytest.mark.parametrize("row", ROWS)
def test_plans_survive_json_and_their_own_text(row):
    plan = plan_of(row)
    again = fv.Plan.from_json(plan.to_json())
    assert again == plan and again.digest() == plan.digest() and hash(again) == hash(plan)
    assert fv.Plan.parse(str(plan)) == plan


def test_every_row_has_a_digest_of_its_own():
    assert len({plan_of(row).digest() for row in ROWS}) == len(ROWS)


# gradients


@pytest.mark.parametrize("row, key", [(r, "deit") for r in SELECTED]
                         + [("argmax", key) for key in tiny.MODELS if key != "one-head"])
def test_cross_entropy_alone_reaches_every_new_parameter(row, key):
    fast, images = adapted(row, key).train(), tiny.images(key, 8)
    labels, outputs = torch.arange(8) % 7, fast.training_outputs(images)
    loss = F.cross_entropy(outputs.logits, labels)
    if row in EXITS:  # the logits of the last exit know nothing of the exits before it
        loss = loss + sum(fast.label_losses(outputs, labels).values())
    loss.backward()
    parameters = dict(fast.method_parameters())
    assert parameters and set(parameters) == {n for n, _ in fast.named_parameters()} - {n for n, _ in tiny.model(key).named_parameters()}
    for name, parameter in parameters.items():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("row", PRUNING)
def test_a_training_step_in_mixed_precision_stays_finite(row):
    fast, images = adapted(row).train(), tiny.images()
    with torch.autocast("cpu", torch.bfloat16):
        out = fast.training_outputs(images)
        terms = (*out.terms.values(), *fast.label_losses(out, torch.arange(3)).values())
        loss = F.cross_entropy(out.logits, torch.arange(3)) + sum(terms) + (out.tokens.mean(-1) * out.live).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in fast.parameters() if p.grad is not None)


# export


@pytest.mark.parametrize("row, key", [("topk", "deit"), ("random", "deit"), ("topk", "siglip"), ("vitality+topk", "deit"), ("vitality-kd", "deit"),
                                      ("evit", "deit"), ("tome", "deit"), ("tome", "siglip")])
def test_static_plans_export_with_a_dynamic_batch(row, key):
    fast, images = adapted(row, key), tiny.images(key, 5)
    exported = torch.export.export(fast, (images[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    with torch.no_grad():
        for count in (1, 3, 5):
            same(exported(images[:count]), fast(images[:count]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("row, key", [("argmax", "deit"), ("argmax-bare", "deit"), ("argmax", "average"), ("argmax", "siglip"),
                                      ("ats", "deit"), ("tome+ats", "deit"),
                                      ("iret", "iret"), ("iret+argmax", "iret")])
def test_per_image_plans_trace_at_batch_one(row, key):
    fast, images = adapted(row, key), tiny.images(key, 6)
    with torch.no_grad():
        traced = torch.jit.trace(fast, (images[:1],), check_trace=False)
        expected, trace = fast.traced(images)
        assert len(set(trace.tokens[-1])) > 1, "all images keep equally many tokens: this test shows nothing"
        for image, logits in zip(images, expected):
            same(traced(image[None])[0], logits)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("row", EXITS)
def test_a_plan_with_exits_is_refused_as_one_graph(row):
    fast, images = adapted(row), tiny.images()
    for export in (lambda: torch.export.export(fast, (images,)), lambda: torch.jit.trace(fast, (images[:1],), check_trace=False)):
        with pytest.raises(fv.FoveateError, match="(?s)exits after block.*one exported.*allowed:.*do:.*segments"):
            export()


# restore


@pytest.mark.parametrize("row, key", [(row, key) for row, key in TABLE if key == "deit" or row in ("argmax", "pivot", *FORGETTING) or key in tiny.ATTENTION_ONLY])
def test_restore_gives_the_original_back(row, key):
    base, images = tiny.model(key), tiny.images(key)
    back = fv.restore(adapted(row, key))
    assert type(back) is type(base)
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in base.named_modules()]
    assert list(back.state_dict()) == list(base.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), base.state_dict().values()))
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in base.named_parameters()]
    assert torch.equal(back(images), base(images))


def test_restore_keeps_what_was_trained_since_and_leaves_the_adapted_model_alone():
    fast, images = adapted("topk+structure"), tiny.images()
    with torch.no_grad():
        fast.blocks[0].attn.qkv.weight.mul_(1.5)
        before = fast(images)
        back = fv.restore(fast)
        assert torch.equal(back.blocks[0].attn.qkv.weight, fast.blocks[0].attn.qkv.weight)
        back.head.weight.zero_()
        assert torch.equal(fast(images), before)


# names


def skipped(name: str, plan: fv.Plan) -> bool:
    """Whether a part of the tiny DeiT belongs to an attention branch that the plan skips: the model does not carry those."""
    blocks, index, child, *_ = [*name.split("."), "", ""]
    pivot = plan.find("pivot")
    return blocks == "blocks" and pivot is not None and int(index or -1) + 1 in pivot.skip and child in ("norm1", "attn", "ls1", "drop_path1")


@pytest.mark.parametrize("row", ROWS)
def test_state_dict_holds_the_bases_keys_and_the_methods_own(row):
    base, fast = tiny.model(), adapted(row)
    theirs, ours = base.state_dict(), fast.state_dict()
    assert [k for k in ours if k in theirs] == [k for k in theirs if not skipped(k, fast.plan)]
    names = [m.name for m in fast.plan.methods]
    extra = [k for k in ours if k not in theirs]
    assert all(k.split(".")[0] in names or k.endswith(".kept") for k in extra)
    own = [n for n, _ in base.named_parameters() if not skipped(n, fast.plan)]
    assert [n for n, _ in fast.named_parameters() if n in dict(base.named_parameters())] == own
    assert len({id(p) for p in fast.parameters()}) == len(list(fast.parameters()))


# the given model


@pytest.mark.parametrize("row", ROWS)
def test_the_given_model_is_left_untouched(row):
    base = tiny.model()
    base.blocks[1].train()
    base.head.weight.requires_grad_(False)
    values = copy.deepcopy(base.state_dict())
    flags = [(n, m.training) for n, m in base.named_modules()]
    modules = [(n, type(m), id(m)) for n, m in base.named_modules()]
    fast = fv.adapt(base, plan_of(row))
    assert [(n, m.training) for n, m in fast.named_modules() if n in dict(flags)] == [f for f in flags if not skipped(f[0], fast.plan)]
    assert not fast.head.weight.requires_grad
    with torch.no_grad():
        fast.train()(tiny.images())
        for parameter in fast.parameters():
            parameter.zero_()
    assert flags == [(n, m.training) for n, m in base.named_modules()]
    assert modules == [(n, type(m), id(m)) for n, m in base.named_modules()]
    assert all(torch.equal(v, values[k]) for k, v in base.state_dict().items())
    assert list(base.state_dict()) == list(values)


# refusals


def refused(*words: str):
    """A FoveateError in three parts that names all of `words`."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words) + ".*allowed:.*do:")


@pytest.mark.parametrize("row", ROWS)
def test_an_unknown_child_is_refused_by_model_and_child(row):
    base = tiny.model()
    base.blocks[2].gate = nn.Linear(24, 24)
    with refused("deit_tiny_patch16_224", r"blocks\.2", "gate"):
        fv.adapt(base, plan_of(row))
    base = tiny.model()
    base.blocks[1].attn.relative = nn.Parameter(torch.zeros(3))
    with refused("deit_tiny_patch16_224", r"blocks\.1\.attn", "relative"):
        fv.adapt(base, plan_of(row))
    base = tiny.model()
    base.blocks[0].ls1 = None
    with refused("deit_tiny_patch16_224", r"blocks\.0", "lacks", "ls1"):
        fv.adapt(base, plan_of(row))


@pytest.mark.parametrize("row", ROWS)
def test_an_unknown_block_or_model_is_refused(row):
    class Block(timm.models.vision_transformer.Block):
        """A block of timm's name that computes something else."""

        def forward(self, x):
            return x + self.mlp(self.norm2(x)) + self.attn(self.norm1(x))

    base = tiny.model()
    base.blocks[1].__class__ = Block
    with refused("deit_tiny_patch16_224", r"blocks\.1", "Block"):
        fv.adapt(base, plan_of(row))

    class Model(timm.models.VisionTransformer):
        pass

    base = tiny.model()
    base.__class__ = Model
    with refused("deit_tiny_patch16_224", "Model"):
        fv.adapt(base, plan_of(row))


@pytest.mark.parametrize("name", ["resnet18", "beit_base_patch16_224", "vit_relpos_small_patch16_224", "swinv2_tiny_window8_256"])
def test_models_of_other_families_are_refused_by_name(name):
    with torch.device("meta"):
        base = timm.create_model(name)
    for row in ("nothing", "topk"):
        with refused(name):
            fv.adapt(base, plan_of(row))


@pytest.mark.parametrize("row", [r for r in ROWS if r != "nothing"])
@pytest.mark.parametrize("key", tiny.DENSE_ONLY)
def test_blocks_that_only_run_dense_are_refused_for_methods(row, key):
    with refused(tiny.DENSE_ONLY[key][0], r"blocks\.0"):
        fv.adapt(tiny.model(key), plan_of(row))


@pytest.mark.parametrize("row", ["topk", "random", "structure+argmax", "vitality+argmax"])
@pytest.mark.parametrize("key", tiny.ATTENTION_ONLY)
def test_pruning_is_refused_where_tokens_must_stay(row, key):
    name, base = tiny.ATTENTION_ONLY[key][0], tiny.model(key)
    with refused("prunes tokens", name):
        fv.adapt(base, plan_of(row))
    with refused("prunes tokens", name):
        fv.count(base, plan_of(row))


@pytest.mark.parametrize("row", ["topk", "random", "structure+argmax"])
def test_pruning_by_own_scores_is_refused_before_the_last_widening(row):
    with pytest.raises(fv.FoveateError, match=r"(?s)after=\[1, 3\].*blocks 3\.\.\.3 of iret_small.*from 3 on, the first of constant width"):
        fv.adapt(tiny.model("iret"), plan_of(row))


@pytest.mark.parametrize("row", ROWS)
def test_a_plan_is_refused_on_an_adapted_model(row):
    fast = adapted(row)
    with refused("already"):
        fv.adapt(fast, plan_of(row))
    assert fv.adapt(fv.restore(fast), plan_of(row)).plan == plan_of(row)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    base = tiny.model()
    base.blocks[1].mlp.fc1.bias.data[3] = value
    with refused(r"blocks\.1\.mlp\.fc1\.bias"):
        fv.adapt(base, fv.Plan([]))


# seeds


@pytest.mark.parametrize("row", ROWS)
def test_the_same_seed_gives_the_same_result(row):
    def result(seed):
        torch.manual_seed(seed)
        fast, images = fv.adapt(tiny.model(), plan_of(row)), tiny.images()
        with torch.no_grad():
            evaluated, trace = fast.traced(images)
            return evaluated, trace.tokens, fast.train()(images)

    first, again, other = result(1), result(1), result(2)
    assert torch.equal(first[0], again[0]) and first[1] == again[1] and torch.equal(first[2], again[2])
    if row in SELECTED or "random" in row:
        assert not torch.equal(first[2], other[2])


# copies and types


@pytest.mark.parametrize("row", ROWS)
def test_copies_and_types_of_an_adapted_model_work(row):
    fast, images = adapted(row), tiny.images()
    with torch.no_grad():
        expected, trace = fast.traced(images)
        twin = copy.deepcopy(fast)
        assert torch.equal(twin(images), expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(fast(images), expected), "a deep copy shares weights with its original"
        wide = copy.deepcopy(fast).double()
        assert {p.dtype for p in wide.parameters()} == {torch.float64}
        same(wide.traced(images.double(), decisions=trace)[0], expected.double(), 1e-5)
        same(wide.masked(images.double(), trace), expected.double(), 1e-5)
        half = copy.deepcopy(fast).to(torch.bfloat16)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        if row not in UNSTEADY:
            same(half.traced(images.bfloat16(), decisions=trace)[0].float(), expected, 0.06)
        same(fv.restore(half).float()(images), fv.restore(fast)(images), 0.06)
        assert torch.equal(pickle.loads(pickle.dumps(fast))(images), expected), "a process that receives the model has the same"


@pytest.mark.parametrize("row, key", [("topk", "deit"), ("argmax", "deit"), ("argmax", "siglip"), ("argmax", "swin"), ("topk", "pit"), ("exits+argmax", "deit"), ("exits+argmax", "swin")])
def test_half_precision_and_autocast_repeat_the_decisions(row, key):
    fast, images = adapted(row, key), tiny.images(key)
    with torch.inference_mode():
        expected, trace = fast.traced(images)
        half = adapted(row, key, torch.float16)
        for logits in (half.traced(images.half(), decisions=trace)[0], half.masked(images.half(), trace)):
            same(logits.float(), expected, 0.01)
        with torch.autocast("cpu", torch.bfloat16):
            for logits in (fast.traced(images, decisions=trace)[0], fast.masked(images, trace)):
                same(logits.float(), expected, 0.06)


def test_the_view_and_the_base_are_one():
    """What happens to the adapted model's parts happens to the base it runs: they share their dictionaries."""
    fast, images = adapted("topk"), tiny.images()
    fast.head = nn.Linear(24, 3)
    assert fast(images).shape == (3, 3)
    fast.load_state_dict({k: torch.zeros_like(v) for k, v in fast.state_dict().items()})
    assert fast(images).abs().max() == 0
    fast.requires_grad_(False)
    assert not any(p.requires_grad for p in fv.restore(fast).parameters())
    assert fast.train().training and fast.anatomy.model.training and not fast.eval().anatomy.model.training
