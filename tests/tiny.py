"""Tiny models of every family, with weights that make each part matter, plans that fit them, and images."""

import copy
import functools

import timm
import torch
from torch import Tensor, nn

import foveate as fv
import foveate.backbones  # noqa: F401  registers lvvit_s
from foveate.nn.exits import sureness

VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=7)
PIT = dict(img_size=48, base_dims=(8, 8, 8), depth=(2, 1, 1), heads=(2, 2, 4), num_classes=7)
SWIN = dict(img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 2, 2), num_heads=(2, 2, 4), drop_path_rate=0.0, num_classes=7)
LEVIT = dict(img_size=80, embed_dim=(16, 24, 32), key_dim=4, num_heads=(2, 2, 4), depth=(2, 1, 1), num_classes=7)
MOBILEVIT = dict(img_size=(64, 128), pretrained_cfg_overlay=dict(input_size=(3, 64, 128)), num_classes=7)
IRET = dict(img_size=32, patch_size=4, embed_dims=(12, 18, 24), widen_at=(2, 3), depth=4, num_heads=3, num_classes=7)

# name: (timm's name, arguments)
VITS = {
    "deit": ("deit_tiny_patch16_224", VIT),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),  # LayerScale, no position for the class token
    "augreg": ("vit_tiny_patch16_224", VIT),
    "dinov2": ("vit_small_patch14_dinov2", VIT),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "clip": ("vit_base_patch16_clip_224", VIT),  # norm before the blocks
    "siglip": ("vit_base_patch16_siglip_224", VIT),  # no class token, map pooling
    "siglip-gap": ("vit_base_patch16_siglip_gap_224", VIT),
    "average": ("vit_tiny_patch16_224", VIT | dict(global_pool="avg")),  # with a class token that is not averaged
    "average-all": ("vit_tiny_patch16_224", VIT | dict(global_pool="avg", pool_include_prefix=True)),
    "no-class": ("vit_tiny_patch16_224", VIT | dict(global_pool="avg", class_token=False, fc_norm=False)),
    "qk-norm": ("vit_tiny_patch16_224", VIT | dict(qk_norm=True)),
    "scale-norm": ("vit_tiny_patch16_224", VIT | dict(scale_attn_norm=True, scale_mlp_norm=True)),
    "dynamic": ("vit_tiny_patch16_224", VIT | dict(dynamic_img_size=True)),
    "one-head": ("vit_tiny_patch16_224", VIT | dict(num_heads=1, embed_dim=20)),
    "oblong": ("vit_tiny_patch16_224", VIT | dict(img_size=(24, 40))),
}
OTHERS = {
    "eva02": ("eva02_tiny_patch14_224", VIT),
    "dinov3": ("vit_small_patch16_dinov3", VIT),
    "lvvit": ("lvvit_s", VIT | dict(patch_size=8)),
    "pit": ("pit_ti_224", PIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
# Blocks that run with all their tokens only.
DENSE_ONLY = {
    "res-post": ("vit_base_patch16_rpn_224", VIT),
    "parallel": ("vit_small_patch16_18x2_224", VIT),
    "parallel-scaling": ("vit_base_patch16_xp_224", VIT),
    "differential": ("vit_dwee_patch16_reg1_gap_256", VIT),
    "differential-parallel": ("vit_dpwee_patch16_reg1_gap_256", VIT),
}
# Tokens stay; attention may be replaced or skipped.
ATTENTION_ONLY = {
    "levit": ("levit_128s", LEVIT),  # 5x5, 3x3, 2x2
    "levit-plain": ("levit_128s", LEVIT | dict(distilled=False, stem_type="s8", img_size=40)),
    "mobilevit": ("mobilevit_xxs", MOBILEVIT),  # 8x16, 4x8, 2x4 in groups of 2x2
}
# Tokens grow wider on the way; what scores them prunes behind that.
WIDENING = {
    "iret": ("iret_small", IRET),
    "iret-dwt": ("iret_small", IRET | dict(sampler="dwt", prefix_growth="mean", img_size=(24, 40), widen_at=(3,), embed_dims=(12, 21))),
    "iret-original": ("iret_small", IRET | dict(sampler="original", prefix_growth="projection", lifting_channels=5)),
}
MODELS = VITS | OTHERS
ALL = MODELS | DENSE_ONLY | ATTENTION_ONLY | WIDENING


@functools.cache
def _built(key: str) -> nn.Module:
    name, arguments = ALL[key]
    torch.manual_seed(sum(map(ord, key)))
    return randomised(timm.create_model(name, **arguments)).eval()


def randomised(model: nn.Module, spread: float = 0.15) -> nn.Module:
    """Adds noise to every parameter: timm's own start leaves biases at 0, scales at 1 and LayerScale at 1e-5."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * spread)
    return model


def model(key: str = "deit", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of the tiny model called `key`, in evaluation mode."""
    return copy.deepcopy(_built(key)).to(dtype)


def images(key: str = "deit", count: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """`count` random images for the tiny model called `key`."""
    size = ALL[key][1]["img_size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def adapted(plan: fv.Plan, key: str = "deit", dtype: torch.dtype = torch.float32) -> fv.AdaptiveModel:
    """The tiny model under `plan`, its selectors spread and centred so that images differ in what they keep."""
    return copy.deepcopy(_adapted(plan, key)).to(dtype)


@functools.cache
def _adapted(plan: fv.Plan, key: str) -> fv.AdaptiveModel:
    base = model(key)
    torch.manual_seed(7)
    fast = fv.adapt(base, plan)
    with torch.no_grad():
        for _, parameter in fast.method_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.6)
        exits = list(fast.earlyexit.exits.values()) if plan.find("earlyexit") else []
        if exits and plan.find("earlyexit").gate == "patience":
            for exit in exits[1:]:
                exit.load_state_dict(exits[0].state_dict())
        closed = {exit.fc: [p.clone() for p in exit.fc.parameters()] for exit in exits}
        for layer in closed:
            layer.weight.zero_(), layer.bias.zero_()
        if plan.find("spvit"):
            for selector in fast.spvit.selectors.values():
                centre(selector, fast, images(key))
        for layer, weights in closed.items():
            part(layer, weights, fast, images(key))
    return fast


def centre(selector: nn.Module, fast: fv.AdaptiveModel, batch: Tensor) -> None:
    """Shifts the selector's last bias until it keeps some of the tokens that reach it, none of them narrowly."""
    seen = {}
    hooks = [getattr(selector, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
             for name in ("score", "excite")]
    fast.traced(batch)
    for hook in hooks:
        hook.remove()
    scores, importance = seen["score"].flatten(1, -2), seen["excite"].flatten(0, -2).sigmoid().T[..., None]

    def margin(shift: float) -> float:
        chance = ((scores + torch.tensor([shift, 0.0])).softmax(-1) * importance).sum(0) / importance.sum(0)
        lead = chance[:, 0] - chance[:, 1]
        return lead.abs().min().item() if 0.25 < (lead > 0).float().mean() < 0.85 else -1.0

    selector.score.bias[:, 0] += max(torch.linspace(-8, 8, 321).tolist(), key=margin)


def part(layer: nn.Module, weights: list[Tensor], fast: fv.AdaptiveModel, batch: Tensor) -> None:
    """Gives an exit's linear its weights back, such that some of the images that reach it leave and some stay, none of them narrowly.

    They are scaled; for patience, logits get a mean of 0, so that images differ in what is named and exits agree now and then.
    """
    seen, config = {}, fast.plan.find("earlyexit")
    hook = layer.register_forward_hook(lambda _, given, __: seen.update(x=given[0]))
    fast.exit_logits(batch) if config.gate == "patience" else fast.traced(batch)
    hook.remove()

    def margin(scale: float) -> float:
        measure = sureness(config.gate, [nn.functional.linear(seen["x"], weights[0] * scale, weights[1] * scale)])
        lead = (measure - config.threshold).abs().min().item()
        return lead if 0 < config.sure(measure).float().mean() < 1 else lead - 2 if not config.sure(measure).any() else -3.0

    if config.gate == "patience":
        weights = [weights[0], -weights[0] @ seen["x"].mean(0)]
    elif seen:
        best = max((1.3 ** step for step in range(-16, 17)), key=margin)
        weights = [weight * best for weight in weights]
    for parameter, weight in zip(layer.parameters(), weights):
        parameter.copy_(weight)


def watched(attn: nn.Module, run) -> tuple[Tensor, Tensor]:
    """What the projection of `attn` made, and what stood before its output linear, while `run()`."""
    seen = {}
    handles = [attn.qkv.register_forward_hook(lambda _, __, out: seen.update(qkv=out)),
               attn.proj.register_forward_pre_hook(lambda _, given: seen.update(z=given[0]))]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen["qkv"], seen["z"]
