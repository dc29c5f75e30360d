"""What a recipe changes about a model and how it becomes an optimizer: parameter groups, schedule, drop path, patch drop."""

from contextlib import contextmanager

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from foveate.errors import FoveateError
from foveate.quantised import is_range
from foveate.train.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Return method parameters at `lr` and backbone parameters at `backbone_lr`, each with and without weight decay.

    Vectors (norms, biases), ranges of 8-bit layers and what the model itself names (position embeddings, class token) are not decayed.
    """
    of_methods = {name for name, _ in model.method_parameters()} if hasattr(model, "method_parameters") else set()
    backbone = model.anatomy.model if hasattr(model, "anatomy") else model
    undecayed = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()
    backbone_lr = recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        method = name in of_methods
        plain = parameter.ndim <= 1 or is_range(name) or name in undecayed or any(name.endswith("." + entry) for entry in undecayed)
        group = groups.setdefault(
            (not method, plain),
            {"params": [], "lr": recipe.lr if method else backbone_lr, "weight_decay": 0.0 if plain else recipe.weight_decay},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups) if groups[key]["lr"] > 0]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return timm's optimizer of the recipe's name over parameter_groups."""
    groups = parameter_groups(model, recipe)
    if not groups:
        raise FoveateError(
            f"{type(model).__name__}, of which nothing would be trained",
            "parameters with requires_grad and a learning rate > 0",
            "set backbone_lr in the recipe, or unfreeze the model",
        )
    try:
        betas = {} if recipe.betas is None else {"betas": recipe.betas}
        return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **betas)
    except (ValueError, TypeError) as error:
        raise FoveateError(
            f"optimizer {recipe.optimizer!r} ({error})", "a name of timm.optim.list_optimizers()", "use adamw"
        ) from error


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """Return a timm schedule; `step_update(step)` sets each group's rate as a function of the step alone."""
    common = {
        "t_initial": recipe.epochs * steps_per_epoch,
        "lr_min": recipe.min_lr,
        "warmup_t": round(recipe.warmup * steps_per_epoch),
        "t_in_epochs": False,
    }
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, **common)
    return PolyLRScheduler(optimizer, power=1.0 if recipe.schedule == "linear" else 0.0, **common)


@contextmanager
def drop_path(model: nn.Module, rate: float | None):
    """Give residual branches a stochastic depth that rises linearly from 0 to `rate` with depth, inside the block.

    rate: None leaves the model as it was built.
    """
    owners = []
    for owner in model.modules() if rate is not None else ():
        names = [name for name, child in owner.named_children() if _is_branch(name, child)]
        if names:
            owners.append((owner, {name: getattr(owner, name) for name in names}))
    for place, (owner, branches) in enumerate(owners):
        share = rate * place / max(1, len(owners) - 1)
        for name in branches:
            setattr(owner, name, DropPath(share) if share else nn.Identity())
    try:
        yield
    finally:
        for owner, branches in owners:
            for name, branch in branches.items():
                setattr(owner, name, branch)


def _is_branch(name: str, child: nn.Module) -> bool:
    return name.startswith("drop_path") and isinstance(child, DropPath | nn.Identity)


@contextmanager
def frozen_backbone(model: nn.Module, active: bool):
    """Keep the backbone bit for bit as it is inside the block, so that methods' parts are trained on what it computes in evaluation.

    Its parameters get no gradient, which would also count in clipping, and its BatchNorms neither use nor follow the batch.
    """
    own = {name for name, _ in model.method_parameters()} if hasattr(model, "method_parameters") else set()
    frozen = [p for name, p in model.named_parameters() if active and name not in own and p.requires_grad]
    norms = [m for name, m in model.named_modules() if active and isinstance(m, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" not in own]
    handles = [norm.register_forward_pre_hook(_still) for norm in norms]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _still(norm: nn.Module, _) -> None:
    """Into evaluation mode, whoever has put the whole model into training mode since."""
    norm.eval()


@contextmanager
def patch_dropping(model: nn.Module, recipe: Recipe):
    """Yield a function that sets the epoch's patch dropping; after the block the model is as it was."""
    if not any(recipe.patch_drop):
        yield lambda epoch: None
        return
    if not isinstance(model, VisionTransformer):
        raise FoveateError(
            f"patch_drop={list(recipe.patch_drop)} with {type(model).__name__}",
            "patch dropping on timm's VisionTransformer only",
            "set patch_drop=[0] in the recipe",
        )
    before = model.patch_drop

    def set_epoch(epoch: int) -> None:
        rate = recipe.patch_drop_at(epoch)
        model.patch_drop = PatchDropout(rate, num_prefix_tokens=model.num_prefix_tokens) if rate else nn.Identity()
        model.patch_drop.train(model.training)

    try:
        yield set_epoch
    finally:
        model.patch_drop = before


@contextmanager
def explicit_attention(model: nn.Module, active: bool):
    """Compute timm's attention as matrix products inside the block: twice as fast as the fused kernel in bf16 on a CPU."""
    modules = [module for module in model.modules() if getattr(module, "fused_attn", False)] if active else []
    for module in modules:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in modules:
            module.fused_attn = True
