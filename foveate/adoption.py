"""adapt, restore, replan: a timm model becomes one that runs by a plan, and is given back. (A module called `adapt` would hide the function.)"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from foveate.adaptive import AdaptiveModel
from foveate.backbones.anatomy import Anatomy, check_image_size
from foveate.backbones.families import anatomy_of, twin_of
from foveate.errors import FoveateError
from foveate.methods.base import Method
from foveate.nn.tokens import dense, with_all_live
from foveate.plan import Plan
from foveate.quantised import RANGE, quantisable, quantise, quantised, unquantise


def adapt(model: nn.Module, plan: Plan, name: str | None = None) -> AdaptiveModel:
    """A new module that runs a copy of `model` by `plan`; the given model is left untouched.

    model: a timm model of a supported family. name: how to call it in messages and cards; timm's name by default.
    Raises FoveateError for an unknown structure, a plan that does not fit, a model already adapted, or NaN weights.
    """
    if isinstance(model, AdaptiveModel):
        raise FoveateError(f"a model that already runs by a plan ({model.plan})", "a timm model",
                           "put all methods into one plan, or call fv.restore(model) first")
    if isinstance(plan, (Method, list, tuple)):
        plan = Plan(plan)
    if not isinstance(plan, Plan):
        raise FoveateError(f"plan={plan!r}", "a Plan", "write fv.Plan([...]), or fv.Plan.parse(text) for a file, a preset or the inline form")
    anatomy = anatomy_of(twin_of(model), name)
    _check_weights(anatomy.model)
    check_image_size(anatomy.model, anatomy.card)
    if plan.methods:
        anatomy.check_attention()
        if any(method.prunes for method in plan.methods):
            anatomy.check_prunable()
        plan.validate(anatomy.card)
        _check_own_forms(anatomy)
    return AdaptiveModel(anatomy, plan)


def restore(model: AdaptiveModel) -> nn.Module:
    """The timm model behind an adapted one, with its present weights and without the methods' parts.

    Raises FoveateError for a model whose weights are not all there: a saved run leaves out the attentions that its plan skips.
    """
    if not isinstance(model, AdaptiveModel):
        raise FoveateError(f"a {type(model).__name__}", "a model made by fv.adapt or fv.load", "there is nothing to restore: use it as it is")
    check_complete(model, model.lost, "the model behind")
    return backbone_of(model)


def backbone_of(model: AdaptiveModel) -> nn.Module:
    """What `restore` gives, with fresh weights where a saved run had left some out: for its structure, and to measure time.

    Layers that compute in 8 bits compute with their weights as they are again.
    """
    twin = copy.deepcopy(model)
    for method, hooks in reversed(twin._hooks()):
        hooks.uninstall(twin.anatomy.blocks)
        del twin._modules[method]
    unquantise(twin.anatomy.model)
    return twin.anatomy.model


def check_complete(model: AdaptiveModel, missing: tuple[int, ...], what: str) -> None:
    """Raises FoveateError where the attention weights of the blocks `missing` are needed for `what` of a plan that skipped them."""
    if missing:
        blocks = f"block{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        raise FoveateError(f"{what} a saved run of {model.card.name} whose plan skipped the attention of {blocks}",
                           "models with all their weights; those of the skipped attentions were not saved",
                           "take the dense run that it was trained from")


def replan(model: AdaptiveModel, plan: Plan) -> AdaptiveModel:
    """The same backbone and the weights it shares with `model`, under another plan.

    For switching settings that change no parameters, such as select="topk" and "argmax"; parts of a method that are
    new keep their fresh weights, and so do attentions that a saved run had left out (`missing` names their blocks).
    Layers that compute in 8 bits still do.
    """
    twin = adapt(backbone_of(model), plan, model.card.name)
    if eight_bit := set(quantised(model)):
        fresh = {id(layer) for block in model.lost for layer in twin.anatomy.blocks[block - 1].modules()}
        quantise(twin, {name: RANGE for name, layer in quantisable(twin).items() if name in eight_bit or id(layer) in fresh})
    twin.load_state_dict(model.state_dict(), strict=False)
    twin.lost = model.lost
    return twin.train(model.training)


def _check_weights(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_meta and not torch.isfinite(value).all():
            raise FoveateError(f"a model with NaN or infinite values in {name}", "finite weights",
                               "load an intact checkpoint; a diverged training keeps its last good one in checkpoints/")


@torch.no_grad()
def _check_own_forms(anatomy: Anatomy) -> None:
    """Holds our own form of each kind of block against timm's on random tokens, so that no new timm is silently wrong."""
    model = anatomy.model
    like = next(model.parameters())
    if like.is_meta:
        return
    was_training = [(m, m.training) for m in model.modules()]
    model.eval()
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator).to(like)
    stem = anatomy.stem(random(1, anatomy.card.in_chans, *anatomy.card.image_size))
    seen: set[str] = set()
    for number, (block, card) in enumerate(zip(anatomy.blocks, anatomy.card.blocks), 1):
        altered = any("forward" in vars(m) for m in block.modules())
        if repr(block) in seen and not altered:
            continue
        seen.add(repr(block))
        width = anatomy.card.block(number - 1).dim if card.entry else card.dim
        tokens = dense(random(1, stem.prefix + card.patches, width), stem.prefix, tuple(card.grid), stem.rope)
        tokens = replace(tokens, beside=stem.beside)
        native, own = anatomy.run_native(number, tokens), anatomy.run(number, with_all_live(tokens), anatomy.attend)
        error = (native.x - own.x).abs().max() / native.x.abs().max()
        if not error <= (1e-3 if like.dtype in (torch.float32, torch.float64) else 0.05):
            raise FoveateError(f"{anatomy.card.name}: block {number} ({type(block).__name__}) computes something else than its children suggest "
                               f"(relative difference {error:.1e})", "blocks of timm's own forward", "report this model with its timm version; use fv.Plan([]) meanwhile")
    for module, training in was_training:
        module.training = training
