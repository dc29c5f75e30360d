"""AdaptiveModel: a backbone that runs by a plan; `adapt` makes one, `restore` gives the backbone back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_image_size
from foveate.backbones.families import anatomy_of, twin_of
from foveate.errors import FoveateError
from foveate.methods import layers
from foveate.methods.base import Method
from foveate.methods.hooks import Run
from foveate.nn.attention import SKIP
from foveate.nn.tokens import Tokens, dense, with_all_live
from foveate.plan import Plan
from foveate.quantised import RANGE, quantisable, quantise, quantised, unquantise
from foveate.trace import Trace

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass
class TrainingOutputs:
    """What a training step needs from one masked pass.

    logits: [B, classes], the mean over `heads`. heads: the logits of each classifier. tokens: final patch features [B, N, D]; live: their decision weights [B, N].
    terms: weighted losses of the methods, to be added. metrics: figures worth logging.
    """

    logits: Tensor
    heads: tuple[Tensor, ...]
    tokens: Tensor
    live: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


class AdaptiveModel(nn.Module):
    """A timm model that runs by a plan: packed (tokens removed) in evaluation, masked (differentiable) in training.

    Made by `adapt`. Parameter names are the base's own; those of a method follow under its name.
    """

    def __init__(self, anatomy: Anatomy, plan: Plan):
        super().__init__()
        # One set of dictionaries, two views: the base's own functions see every change (dtype, device, weights).
        for name in _SHARED:
            self.__dict__[name] = anatomy.model.__dict__[name]
        self.training = anatomy.model.training
        self.anatomy, self.plan = anatomy, plan
        self._owners = {block: method.name for block, method in plan.attention(anatomy.card).items()}
        self.progress = 0.0  # share of training done, set by the trainer; methods may follow schedules of their own
        self.lost: tuple[int, ...] = ()
        for method in plan.methods:
            hooks = layers(method.name).build(method, anatomy.card)
            like = next(anatomy.model.parameters())
            self.add_module(method.name, hooks.to(like.device, like.dtype).train(self.training))
            hooks.install(anatomy.blocks)

    @property
    def card(self):
        """The backbone in numbers."""
        return self.anatomy.card

    @property
    def num_classes(self) -> int:
        return self.anatomy.model.num_classes

    @property
    def pretrained_cfg(self) -> dict:
        """timm's description of the weights: input size, mean, std, crop, interpolation, labels."""
        return getattr(self.anatomy.model, "pretrained_cfg", None) or {}

    def train(self, mode: bool = True) -> "AdaptiveModel":
        self.anatomy.model.training = mode
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W], already normalised; packed in eval(), masked in train()."""
        return self._logits(self._pass(images, Run(masked=self.training, sample=self.training, progress=self.progress)))

    def traced(self, images: Tensor, decisions: Trace | None = None) -> tuple[Tensor, Trace]:
        """Logits of the packed form and the Trace of what happened.

        decisions: repeat these instead of deciding. Raises FoveateError if they are for other images or another plan.
        """
        run = Run(masked=False, replay=self._fitting(decisions, images), block_tokens=[])
        logits = self._logits(self._pass(images, run))
        return logits, Trace(
            images=len(images), tokens=[s.tokens.counts() for s in run.stages], block_tokens=run.block_tokens,
            kept=[s.tokens.kept().cpu().numpy() for s in run.stages], after=tuple(s.after for s in run.stages),
            skipped=tuple(run.skipped))

    def masked(self, images: Tensor, trace: Trace) -> Tensor:
        """Logits of the training form under the decisions of `trace`; equal to those of `traced` (semantics.md 2)."""
        return self._logits(self._pass(images, Run(masked=True, replay=self._fitting(trace, images))))

    def training_outputs(self, images: Tensor) -> TrainingOutputs:
        """One masked pass with sampled decisions: logits, features for distillation and the methods' losses."""
        run = Run(masked=True, sample=self.training, progress=self.progress)
        tokens = self._pass(images, run)
        features, live = self.anatomy.features(tokens)
        terms, metrics = {}, {}
        for name, hooks in self._hooks():
            terms |= {f"{name}_{k}": v for k, v in hooks.losses(run).items()}
            metrics |= {f"{name}_{k}": v for k, v in hooks.metrics(run).items()}
        heads = (*self.anatomy.heads(tokens), *self._own_heads(tokens))
        return TrainingOutputs(sum(heads) / len(heads), heads, features, live, terms, metrics)

    def label_losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Weighted losses of the methods that need the classes: logits [B, classes] of a masked pass, labels [B]."""
        return {f"{name}_{k}": v for name, hooks in self._hooks() for k, v in hooks.label_losses(logits, labels).items()}

    @property
    def calibrates(self) -> bool:
        """Whether a method of the plan sets something by what the dense backbone does on images, see `calibrate`."""
        return any(hooks.calibrates for _, hooks in self._hooks())

    def calibrate(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Lets the methods look at their dense backbone at work, before it is trained under the plan (`Hooks.calibrate`).

        batches: normalised images [B, 3, H, W] of the training set, in one tensor or in several. Without it methods keep what they start from.
        Raises FoveateError for a backbone whose weights are not all there, and as the methods do.
        """
        dense = adapt(restore(self), Plan(), self.card.name).eval()
        kept = [batches] if isinstance(batches, Tensor) else list(batches)
        for _, hooks in self._hooks():
            hooks.calibrate(dense, kept)

    def forget(self) -> None:
        """Notes that the weights come from a saved run: the attention branches that methods have taken out were not in it.

        `lost` names their 1-based blocks from now on; `restore` has nothing to give back there and refuses.
        """
        self.lost = tuple(sorted(self._taken()))

    @property
    def missing(self) -> tuple[int, ...]:
        """1-based blocks that run with fresh attention weights, because the run that the model comes from had left theirs out."""
        return tuple(sorted(set(self.lost) - self._taken()))

    def _taken(self) -> set[int]:
        return {block for _, hooks in self._hooks() for block in hooks.taken}

    def method_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that belong to methods; all others are the backbone's."""
        for name, hooks in self._hooks():
            yield from ((f"{name}.{n}", p) for n, p in hooks.named_parameters())

    def _hooks(self) -> list[tuple[str, nn.Module]]:
        return [(m.name, self._modules[m.name]) for m in self.plan.methods]

    def _logits(self, tokens: Tokens) -> Tensor:
        logits, own = self.anatomy.head(tokens), self._own_heads(tokens)
        return (logits + sum(own)) / (1 + len(own)) if own else logits

    def _own_heads(self, tokens: Tokens) -> list[Tensor]:
        made = (hooks.classify(tokens, self.anatomy.final_norm) for _, hooks in self._hooks())
        return [logits for logits in made if logits is not None]

    def _pass(self, images: Tensor, run: Run) -> Tokens:
        self._check(images)
        tokens = self.anatomy.stem(images)
        hooks = [h for _, h in self._hooks()]
        for hook in hooks:
            tokens = hook.enter(tokens)
        for block in range(1, self.card.depth + 1):
            if run.block_tokens is not None:
                run.block_tokens.append(tokens.counts())
            owner = self._owners.get(block)
            mix = self._modules[owner].attention(block, run) if owner else None
            if mix is SKIP:
                run.skipped.append(block)
            tokens = self.anatomy.block(block, tokens, mix)
            for hook in hooks:
                tokens = hook.after(block, tokens, run)
        return tokens

    def _check(self, images: Tensor) -> None:
        chans, size = self.card.in_chans, tuple(self.card.image_size)
        if images.dim() != 4 or images.shape[1] != chans:
            raise FoveateError(f"images of shape {list(images.shape)}", f"[batch, {chans}, height, width]",
                               "add a batch dimension with images[None]" if images.dim() == 3 else "convert the images to that shape")
        if not images.is_floating_point():
            raise FoveateError(f"images of {images.dtype}", "floating-point images, already normalised",
                               "divide by 255, subtract the mean and divide by the deviation: model.pretrained_cfg has both")
        if tuple(images.shape[-2:]) == size:
            return
        given, embed = f"images of {images.shape[-2]}x{images.shape[-1]} pixels for {self.card.name}", getattr(self.anatomy.model, "patch_embed", None)
        if not getattr(self.anatomy.model, "dynamic_img_size", False):
            raise FoveateError(given, f"{size[0]}x{size[1]} pixels",
                               f"resize the images, or create the model with {self.anatomy.resized_by}")
        if not embed.dynamic_img_pad and any(side % patch for side, patch in zip(images.shape[-2:], embed.patch_size)):
            raise FoveateError(given, f"sides divisible by the patch of {embed.patch_size[0]}x{embed.patch_size[1]} pixels",
                               "resize or pad the images, or create the model with dynamic_img_pad=True")

    def _fitting(self, trace: Trace | None, images: Tensor) -> Trace | None:
        if trace is None:
            return None
        stages = sorted(b for m in self.plan.methods for b in getattr(m, "after", ()))
        if not isinstance(trace, Trace) or trace.images != len(images) or len(trace.kept) != len(stages):
            raise FoveateError(
                f"decisions for {trace.images} images and {len(trace.kept)} stages" if isinstance(trace, Trace) else f"decisions {trace!r}",
                f"decisions for these {len(images)} images and the plan's {len(stages)} stages",
                "use the Trace that model.traced(images) returned for the same images")
        for kept, block in zip(trace.kept, stages):
            fits = kept.shape == (len(images), self.card.tokens_after(block)) or tuple(images.shape[-2:]) != tuple(self.card.image_size)
            if not fits or not kept.any(axis=1).all():
                raise FoveateError(
                    f"decisions after block {block} that keep {kept.sum(axis=-1).tolist()} of {kept.shape[-1]} patches",
                    f"at least one of the {self.card.tokens_after(block)} patches of every image", "use a Trace of this backbone, with a survivor in every image")
        return trace


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
        tokens = dense(random(1, stem.prefix + card.patches, card.dim), stem.prefix, tuple(card.grid), stem.rope)
        native, own = anatomy.run_native(number, tokens), anatomy.run(number, with_all_live(tokens), anatomy.attend)
        error = (native.x - own.x).abs().max() / native.x.abs().max()
        if not error <= (1e-3 if like.dtype in (torch.float32, torch.float64) else 0.05):
            raise FoveateError(f"{anatomy.card.name}: block {number} ({type(block).__name__}) computes something else than its children suggest "
                               f"(relative difference {error:.1e})", "blocks of timm's own forward", "report this model with its timm version; use fv.Plan([]) meanwhile")
    for module, training in was_training:
        module.training = training
