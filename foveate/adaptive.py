"""AdaptiveModel: a backbone that runs by a plan. `foveate.adoption` makes one and gives the backbone back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, Between
from foveate.budgeting import Ask, allowance
from foveate.budgets import SegmentCosts
from foveate.errors import FoveateError
from foveate.fitting import check_decisions, check_eager, check_images
from foveate.methods import layers
from foveate.methods.hooks import Run
from foveate.nn.attention import SKIP, Mix
from foveate.nn.class_row import watched
from foveate.nn.exits import Waiting, stayed
from foveate.nn.tokens import Tokens
from foveate.plan import Plan
from foveate.segments import cut_at_exits
from foveate.trace import Trace

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass
class TrainingOutputs:
    """What a training step needs from one masked pass.

    logits: [B, classes], the mean over `heads`. heads: the logits of each classifier. tokens: final patch features [B, N, D]; live: their decision weights [B, N].
    terms: weighted losses of the methods, to be added. metrics: figures worth logging. run: the pass itself, with the answers of early exits.
    """

    logits: Tensor
    heads: tuple[Tensor, ...]
    tokens: Tensor
    live: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]
    run: Run


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
        self._watched = plan.watched(anatomy.card)
        self.pruning_blocks, self.exit_blocks = plan.stages(anatomy.card), plan.exits(anatomy.card)
        self.progress = 0.0  # share of training done, set by the trainer; methods may follow schedules of their own
        self.lost: tuple[int, ...] = ()
        self.costs: SegmentCosts | None = None  # of the segments between the exits, once a budget has asked for them
        self._inside = [m for m in plan.settled(anatomy.card) if m.inside]
        for method in plan.settled(anatomy.card):
            hooks = layers(method.name).build(method, anatomy.card)
            like = next(anatomy.model.parameters())
            self.add_module(method.name, hooks.to(like.device, like.dtype).train(self.training))
            hooks.install(anatomy.blocks)

    @property
    def _exit_hooks(self) -> dict[int, nn.Module]:
        """Whose exits stand behind which blocks, the last block's left out: that one is the model's own head."""
        return {block: self._modules[m.name] for m in self.plan.methods for block in m.exits(self.card) if block < self.card.depth}

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

    def forward(self, images: Tensor, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True, target: str | None = None) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W], already normalised; packed in eval(), masked in train().

        budget_ms: milliseconds from this call to an image's answer, by a table of this machine (measured at the first such call). budget_mj:
        millijoules of an image on `target`, simulated. A number for all, or one for each image. Before each segment between two exits the
        images that cannot pay for it leave with their last answer (semantics.md 16); no gradients are recorded then.
        strict: refuse budgets below the first possible answer; otherwise such images get that answer and stand in trace.short.
        Raises FoveateError for those, for budgets that are no numbers >= 0, and for budgets on a model without exits or in training.
        """
        if budget_ms is None and budget_mj is None:
            return self._answer(images, Run(masked=self.training, sample=self.training, progress=self.progress))
        return self._spend(images, Ask(budget_ms, budget_mj, strict, target), Run(masked=False))

    def traced(self, images: Tensor, decisions: Trace | None = None, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True,
               target: str | None = None) -> tuple[Tensor, Trace]:
        """Logits of the packed form and the Trace of what happened.

        decisions: repeat these instead of deciding. The others: as in `forward`. Raises FoveateError as that does, for decisions that are
        for other images or another plan, and for decisions with a budget.
        """
        run, ask = Run(masked=False, replay=self._fitting(decisions, images), block_tokens=[]), Ask(budget_ms, budget_mj, strict, target)
        if ask.anything:
            ask.check_free(decisions)
        logits = self._spend(images, ask, run) if ask.anything else self._answer(images, run)
        return logits, self._trace(run, len(images))

    @torch.no_grad()
    def _spend(self, images: Tensor, ask: Ask, run: Run) -> Tensor:
        """Logits of one pass that must not cost more than was asked for."""
        check_images(self.anatomy, images)
        ask.check(bool(self.exit_blocks), self.training, f"{self.card.name}, {self.plan}")
        run.budget, self.costs = allowance(cut_at_exits(self, images), self.costs, images, ask)
        return self._answer(images, run)

    def masked(self, images: Tensor, trace: Trace) -> Tensor:
        """Logits of the training form under the decisions of `trace`; equal to those of `traced` (semantics.md 2)."""
        return self._answer(images, Run(masked=True, replay=self._fitting(trace, images)))

    def exit_logits(self, images: Tensor) -> tuple[dict[int, Tensor], Trace]:
        """The logits [B, classes] of every exit by its 1-based block, the model's own head last, and the Trace: the packed form, in which nobody leaves.

        Raises FoveateError for a plan without early exits.
        """
        if not self.exit_blocks:
            raise FoveateError(f"exit_logits of {self.card.name} under the plan {self.plan}", "plans with early exits", "add fv.EarlyExit(after=(4, 8)) to the plan")
        run = Run(masked=False, block_tokens=[], answers={})
        last = self._logits(self._pass(images, run))
        return {block: run.answers[f"exit_{block}"] for block in self.exit_blocks[:-1]} | {self.card.depth: last}, self._trace(run, len(images))

    def training_outputs(self, images: Tensor) -> TrainingOutputs:
        """One masked pass with sampled decisions: logits, features for distillation and the methods' losses."""
        run = Run(masked=True, sample=self.training, progress=self.progress, answers={})
        tokens = self._pass(images, run)
        features, live = self.anatomy.features(tokens)
        terms, metrics = {}, {}
        for name, hooks in self._hooks():
            terms |= {f"{name}_{k}": v for k, v in hooks.losses(run).items()}
            metrics |= {f"{name}_{k}": v for k, v in hooks.metrics(run).items()}
        heads = (*self.anatomy.heads(tokens), *self._own_heads(tokens))
        return TrainingOutputs(sum(heads) / len(heads), heads, features, live, terms, metrics, run)

    def label_losses(self, outputs: TrainingOutputs, targets: Tensor) -> dict[str, Tensor]:
        """Weighted losses of the methods that need the right answers: those of a training pass, and its targets [B] or [B, classes]."""
        return {f"{name}_{k}": v for name, hooks in self._hooks() for k, v in hooks.label_losses(outputs.run, outputs.logits, targets).items()}

    def _trace(self, run: Run, images: int) -> Trace:
        """What `run` did; stages and blocks that an image did not reach count 0 of its tokens."""
        waiting, depth = run.waiting, self.card.depth
        tokens, kept = [], []
        for stage in run.stages:
            counts, alive = stage.tokens.counts(), stage.tokens.kept().cpu().numpy()
            places = range(images) if stage.places is None else stage.places
            tokens.append(_spread(counts, places, images))
            kept.append(np.zeros((images, alive.shape[1]), dtype=bool))
            kept[-1][list(places)] = alive
        for block in self.pruning_blocks[len(run.stages):]:
            tokens.append([0] * images)
            kept.append(np.zeros((images, self.card.tokens_after(block)), dtype=bool))
        unreached = [[0] * images] * (depth - len(run.block_tokens))
        return Trace(images=images, tokens=tokens, block_tokens=run.block_tokens + unreached, kept=kept, after=self.pruning_blocks,
                     exits=list(waiting.exits) if waiting else [], skipped=tuple(run.skipped), short=sorted(set(waiting.short)) if waiting else [],
                     rescued=sorted(run.rescued))

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

    def inference_state(self) -> dict[str, Tensor]:
        """`state_dict` without what only training needs, such as auxiliary classifiers."""
        spare = tuple(f"{name}.{child}." for name, hooks in self._hooks() for child in hooks.training_only)
        return {name: value for name, value in self.state_dict().items() if not name.startswith(spare)}

    def _hooks(self) -> list[tuple[str, nn.Module]]:
        return [(m.name, self._modules[m.name]) for m in self.plan.methods]

    def _answer(self, images: Tensor, run: Run) -> Tensor:
        """Logits of one pass; where images may leave early, each image's from the exit it took."""
        if self.exit_blocks and (run.replay is not None or not self.training):
            check_eager(self.card, self.exit_blocks)
            run.waiting = Waiting.all(len(images), run.budget)
        tokens = self._pass(images, run)
        logits = None if tokens is None else self._logits(tokens)
        return logits if run.waiting is None else run.waiting.finish(self.card.depth, logits)

    def _logits(self, tokens: Tokens) -> Tensor:
        logits, own = self.anatomy.head(tokens), self._own_heads(tokens)
        return (logits + sum(own)) / (1 + len(own)) if own else logits

    def _own_heads(self, tokens: Tokens) -> list[Tensor]:
        made = (hooks.classify(tokens, self.anatomy.final_norm) for _, hooks in self._hooks())
        return [logits for logits in made if logits is not None]

    def _pass(self, images: Tensor, run: Run) -> Tokens | None:
        """The tokens behind the last block; None where every image has left before."""
        check_images(self.anatomy, images)
        tokens = self._entered(images)
        for block in range(1, self.card.depth + 1):
            tokens = self._block(block, tokens, run)
            if block in self._exit_hooks:
                tokens = self._exit(block, tokens, run)
                if tokens is None:
                    return None
            tokens = self._behind(block, tokens, run)
        return tokens

    def segment(self, number: int, given: Tensor | Tokens, run: Run) -> tuple[Tokens, Tensor]:
        """One segment of a model with exits, 0-based: what leads from one exit to the next, for all images. Its tokens and its logits [B, classes].

        given: images [B, 3, H, W] for the first, for others the tokens that the segment before left; `run` belongs to all segments of a pass.
        """
        first, last = (0, *self.exit_blocks)[number : number + 2]
        if number == 0:
            check_images(self.anatomy, given)
        tokens = self._behind(first, given, run) if number else self._entered(given)
        for block in range(first + 1, last):
            tokens = self._behind(block, self._block(block, tokens, run), run)
        tokens = self._block(last, tokens, run)
        if last < self.card.depth:
            return tokens, self._exit_hooks[last].answer(last, self.anatomy.pooled(tokens))
        tokens = self._behind(last, tokens, run)
        return tokens, self._logits(tokens)

    def sure(self, answers: list[Tensor]) -> Tensor:
        """Which images may leave, bool [n], given the logits [n, classes] of all exits so far of a model that has some."""
        return self._exit_hooks[self.exit_blocks[0]].sure(answers)

    def _entered(self, images: Tensor) -> Tokens:
        tokens = self.anatomy.stem(images)
        for _, hooks in self._hooks():
            tokens = hooks.enter(tokens)
        return tokens

    def _block(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        if run.block_tokens is not None:
            run.block_tokens.append(self._counted(tokens, run))
        return self.anatomy.block(block, tokens, self._mix(block, run), self._between(block, run))

    def _behind(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        for _, hooks in self._hooks():
            tokens = hooks.after(block, tokens, run)
        return tokens

    def _mix(self, block: int, run: Run) -> Mix | None:
        owner = self._owners.get(block)
        mix = self._modules[owner].attention(block, run) if owner else None
        if mix is SKIP:
            run.skipped.append(block)
        elif block in self._watched:
            return watched(mix or self.anatomy.attend, block, run.watched)
        return mix

    def _between(self, block: int, run: Run) -> Between | None:
        inside = [self._modules[m.name] for m in self._inside if block in m.stages(self.card)]

        def call(tokens: Tokens) -> Tokens:
            for hooks in inside:
                tokens = hooks.between(block, tokens, run)
            return tokens

        return call if inside else None

    def _exit(self, block: int, tokens: Tokens, run: Run) -> Tokens | None:
        """What goes on behind an exit before the last one."""
        hooks, waiting = self._exit_hooks[block], run.waiting
        if waiting is None and run.answers is None:
            return tokens
        logits = hooks.answer(block, self.anatomy.pooled(tokens))
        if run.answers is not None:
            run.answers[f"exit_{block}"] = logits
        if waiting is None:
            return tokens
        if run.replay is not None:
            staying = waiting.replay(block, logits, run.replay.exits)
        else:
            staying = waiting.offer(block, logits, hooks.sure, self.exit_blocks.index(block) + 1, tokens.counts)
        if staying is not None and len(staying):
            run.watched[-1:] = [row.select(staying) for row in run.watched[-1:]]
        return stayed(tokens, staying)

    @staticmethod
    def _counted(tokens: Tokens, run: Run) -> list[int]:
        """Live tokens of each image of the batch, 0 for those that have left."""
        return tokens.counts() if run.waiting is None else _spread(tokens.counts(), run.waiting.places, run.waiting.images)

    def _fitting(self, trace: Trace | None, images: Tensor) -> Trace | None:
        return check_decisions(self.card, self.pruning_blocks, self.exit_blocks, trace, images)


def _spread(values: list[int], places: list[int], images: int) -> list[int]:
    found = [0] * images
    for place, value in zip(places, values):
        found[place] = value
    return found
