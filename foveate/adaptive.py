"""AdaptiveModel: a backbone that runs by a plan. `foveate.adoption` makes one and gives the backbone back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Iterator

from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy
from foveate.errors import FoveateError
from foveate.methods import layers
from foveate.methods.hooks import Run
from foveate.nn.attention import SKIP
from foveate.nn.tokens import Tokens
from foveate.plan import Plan
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
        for method in plan.settled(anatomy.card):
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

    def calibrate(self, dense: "AdaptiveModel", batches: Tensor | Iterable[Tensor]) -> None:
        """Lets the methods look at the dense model at work before training (`Hooks.calibrate`); without it they keep what they start from.

        dense: the same backbone under the empty plan, in evaluation mode: fv.adapt(model, fv.Plan([])).eval().
        batches: normalised images [B, 3, H, W] of the training set, in one tensor or in several.
        Raises FoveateError for another model as the dense one, and as the methods do.
        """
        if not isinstance(dense, AdaptiveModel) or dense.plan.methods or dense.card.blocks != self.card.blocks:
            given = f"{dense.card.name} under the plan {dense.plan}" if isinstance(dense, AdaptiveModel) else f"a {type(dense).__name__}"
            raise FoveateError(f"{given} to calibrate {self.card.name} on", f"{self.card.name} under the empty plan",
                               "give fv.adapt(model, fv.Plan([])).eval() of the same backbone")
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

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As torch's, but in strict mode weights of attentions that the plan has taken out are refused, where torch would pass over them."""
        if strict and (lost := sorted(set(state_dict) - set(self.state_dict()))):
            raise FoveateError(f"weights of {self.card.name} with {lost[0]}{f' and {len(lost) - 1} more' * (len(lost) > 1)}, which a model by the plan {self.plan} does not have",
                               "weights of the same backbone under the same plan",
                               "load them into the dense model and adapt that, or load with strict=False to leave them out")
        return super().load_state_dict(state_dict, strict, assign)

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
