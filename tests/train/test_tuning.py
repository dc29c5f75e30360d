import math

import pytest
import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveate.errors import FoveateError
from foveate.train.recipe import Recipe
from foveate.train.tuning import (
    drop_path,
    explicit_attention,
    make_optimizer,
    make_schedule,
    parameter_groups,
    patch_dropping,
)


def tiny(**settings) -> VisionTransformer:
    return VisionTransformer(img_size=8, patch_size=2, embed_dim=8, depth=3, num_heads=2, num_classes=10, **settings)


class WithMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.method = nn.Linear(4, 4)

    def method_parameters(self):
        return [(f"method.{name}", parameter) for name, parameter in self.method.named_parameters()]


def test_method_and_backbone_have_their_own_rates_and_vectors_no_decay():
    model = WithMethod()
    groups = parameter_groups(model, Recipe(lr=1e-3, backbone_lr=1e-5, weight_decay=0.1))
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert found == {
        id(model.method.weight): (1e-3, 0.1),
        id(model.method.bias): (1e-3, 0.0),
        id(model.backbone.weight): (1e-5, 0.1),
        id(model.backbone.bias): (1e-5, 0.0),
    }


def test_a_backbone_at_rate_0_is_left_out():
    model = WithMethod()
    groups = parameter_groups(model, Recipe(backbone_lr=0))
    assert sum(len(group["params"]) for group in groups) == 2
    for parameter in model.method.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(FoveateError, match="nothing would be trained"):
        make_optimizer(model, Recipe(backbone_lr=0))


def test_position_embedding_and_class_token_are_not_decayed():
    model = tiny()
    decayed = {id(p) for group in parameter_groups(model, Recipe()) if group["weight_decay"] for p in group["params"]}
    assert id(model.pos_embed) not in decayed and id(model.cls_token) not in decayed
    assert id(model.patch_embed.proj.weight) in decayed
    assert sum(len(group["params"]) for group in parameter_groups(model, Recipe())) == len(list(model.parameters()))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(FoveateError, match="'adamx'"):
        make_optimizer(tiny(), Recipe(optimizer="adamx"))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_is_a_function_of_the_step_alone(schedule):
    recipe = Recipe(epochs=4, lr=0.1, backbone_lr=0.01, warmup=0.5, schedule=schedule)
    forward, jump = (make_optimizer(WithMethod(), recipe) for _ in range(2))
    schedule_forward, schedule_jump = (make_schedule(optimizer, recipe, 10) for optimizer in (forward, jump))
    for step in range(24):
        schedule_forward.step_update(step)
    schedule_jump.step_update(23)
    rates = [group["lr"] for group in forward.param_groups]
    assert rates == [group["lr"] for group in jump.param_groups]
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * 23 / 40)), "linear": 1 - 23 / 40, "constant": 1.0}[schedule]
    assert rates == pytest.approx([0.1 * share] * 2 + [0.01 * share] * 2)
    schedule_jump.step_update(1)
    assert jump.param_groups[0]["lr"] == pytest.approx(0.1 * 1 / 5)


def test_drop_path_rises_with_depth_and_is_put_back():
    model = tiny()
    before = repr(model)
    with drop_path(model, 0.2):
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
        assert rates == pytest.approx([0, 0.1, 0.2])
        assert isinstance(model.blocks[2].drop_path2, DropPath)
    assert repr(model) == before
    built = tiny(drop_path_rate=0.3)
    with drop_path(built, None):
        assert built.blocks[2].drop_path1.drop_prob == pytest.approx(0.3)
    with drop_path(built, 0.0):
        assert isinstance(built.blocks[2].drop_path1, nn.Identity)
    assert built.blocks[2].drop_path1.drop_prob == pytest.approx(0.3)


def test_patch_drop_follows_the_epochs_and_is_put_back():
    model = tiny().train()
    lengths = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    with patch_dropping(model, Recipe(patch_drop=(0.75, 0.5, 0.0))) as set_epoch:
        for epoch in range(4):
            set_epoch(epoch)
            model(torch.zeros(2, 3, 8, 8))
        set_epoch(0)
        model.eval()(torch.zeros(2, 3, 8, 8))
    hook.remove()
    assert lengths == [1 + 4, 1 + 8, 1 + 16, 1 + 16, 1 + 16]
    assert isinstance(model.patch_drop, nn.Identity) and not isinstance(model.patch_drop, PatchDropout)


def test_patch_drop_is_refused_elsewhere():
    with pytest.raises(FoveateError, match="WithMethod"), patch_dropping(WithMethod(), Recipe(patch_drop=(0.5,))):
        pass
    with patch_dropping(WithMethod(), Recipe()) as set_epoch:
        set_epoch(0)


def test_explicit_attention_is_put_back_also_after_an_error():
    model = tiny()
    before = [block.attn.fused_attn for block in model.blocks]
    with pytest.raises(KeyError), explicit_attention(model, True):
        assert not any(block.attn.fused_attn for block in model.blocks)
        raise KeyError
    assert [block.attn.fused_attn for block in model.blocks] == before
