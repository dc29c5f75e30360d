"""What a method's modules may do during a pass, and the record of the pass that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, ClassVar, Iterable

import torch
from torch import Tensor, nn

from foveate.nn.exits import Budget, Waiting
from foveate.nn.attention import Mix
from foveate.nn.class_row import Watched
from foveate.nn.mixing import Attention, mixed
from foveate.nn.tokens import Tokens
from foveate.trace import Trace


@dataclass
class Stage:
    """One pruning decision as it was taken: the tokens it left, after which block, and the keep ratio aimed at, if any.

    places: numbers of the images in the batch, where others had left before.
    """

    after: int
    keep: float | None
    tokens: Tokens
    places: list[int] | None = None


@dataclass
class Run:
    """One forward pass.

    masked: the training form (all tokens present, decision weights) instead of the packed one.
    sample: decisions are sampled with noise, as in training, instead of taken deterministically.
    progress: share of training done, in [0, 1].
    replay: decisions to repeat; stage s uses replay.kept[s].
    block_tokens: a list to record what each block works on; None, as in training and export, counts nothing.
    skipped: blocks whose attention did not run. figures: what hooks noted on the way, worth logging.
    waiting: who still runs, in a model whose images may leave early. budget: what may be spent on each of them.
    watched: what the class token attended to, in the blocks that a method watches, in order.
    keys: of the attention that ran last, [B, n, H, d] or ragged [T, H, d], in blocks where a method merges tokens by them.
    answers: logits of classifiers other than the last, by name, noted where a training step asks for them with a dictionary.
    rescued: images of which a stage wanted to keep no patch; the best-scored one lived on. Noted where `block_tokens` is.
    """

    masked: bool
    sample: bool = False
    progress: float = 0.0
    replay: Trace | None = None
    stages: list[Stage] = field(default_factory=list)
    block_tokens: list[list[int]] | None = None
    skipped: list[int] = field(default_factory=list)
    figures: dict[str, Tensor] = field(default_factory=dict)
    waiting: Waiting | None = None
    budget: Budget | None = None
    watched: list[Watched] = field(default_factory=list)
    keys: Tensor | None = None
    answers: dict[str, Tensor] | None = None
    rescued: set[int] = field(default_factory=set)

    def replayed(self, device: torch.device) -> Tensor | None:
        """Keep decisions [B, slots] (bool) to repeat at the next stage, or None."""
        if self.replay is None:
            return None
        kept = self.replay.kept[len(self.stages)]
        return torch.from_numpy(kept if self.waiting is None else kept[self.waiting.places]).to(device)

    def pruned(self, after: int, keep: float | None, tokens: Tokens) -> None:
        """Notes the tokens that a stage behind (or inside) block `after` left."""
        self.stages.append(Stage(after, keep, tokens, None if self.waiting is None else list(self.waiting.places)))

    def rescue(self, images: list[int]) -> None:
        """Notes images, by their numbers among those that still run, of which a stage wanted to keep no patch."""
        self.rescued.update(images if self.waiting is None else (self.waiting.places[i] for i in images))

    def class_row(self, tokens: Tokens) -> Tensor:
        """What the class token attended to in the last watched block that had an attention: [B, n], or ragged [T], for the tokens that are left."""
        return self.watched[-1].row_at(tokens)


class Hooks(nn.Module):
    """Base of every method's modules; each hook does nothing unless a method overrides it.

    The module is registered in the AdaptiveModel under the method's name, which prefixes its parameters.
    """

    calibrates: ClassVar[bool] = False
    """Whether `calibrate` does something, so that images are worth reading."""

    training_only: ClassVar[tuple[str, ...]] = ()
    """Children that only training needs; a saved run is without them."""

    @property
    def taken(self) -> tuple[int, ...]:
        """1-based blocks whose attention branch `install` has taken out, so that the model and its saved run do not carry it."""
        return ()

    def install(self, blocks: list[nn.Module]) -> None:
        """Changes children of the (already copied) blocks in place."""

    def uninstall(self, blocks: list[nn.Module]) -> None:
        """Undoes `install`."""

    def calibrate(self, dense, batches: Iterable[Tensor]) -> None:
        """Called before training with the dense model (adapted to the empty plan, in evaluation mode) and images in batches [B, 3, H, W]."""

    def enter(self, tokens: Tokens) -> Tokens:
        """Called on what the stem gives to block 1."""
        return tokens

    def attention(self, block: int, run: Run) -> Mix | None:
        """What runs in place of softmax attention in block `block` (1-based), where the plan gives that block to this method.

        Called as mix(q, k, v, tokens, scale, fused, dropout, weights=None, bias=None): q [B, n, H, d], k [B, m, H, d] and
        v [B, m, H, e], or ragged [T, H, .]; the result has q's leading shape. Families with windows pass the decision
        weights of their keys, families with score biases those. `SKIP` leaves the whole attention branch out.
        """
        return None

    def between(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        """Called inside block `block` (1-based), between its attention and its MLP, for methods that say so (`Method.inside`)."""
        return tokens

    def after(self, block: int, tokens: Tokens, run: Run) -> Tokens:
        """Called behind block `block` (1-based) and the stage transition that may follow it; images that leave there are gone already."""
        return tokens

    def answer(self, block: int, features: Tensor) -> Tensor:
        """Logits [B, classes] of the exit behind block `block`, for blocks that `Method.exits` names before the last.

        features: [B, D], what the model's own head would read there (Anatomy.pooled).
        """
        raise AssertionError("a method with exits answers for itself")

    def sure(self, answers: list[Tensor]) -> Tensor:
        """Which images may leave, bool [n], given the logits [n, classes] of all exits so far."""
        raise AssertionError("a method with exits judges for itself")

    def classify(self, tokens: Tokens, final_norm: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Logits [B, classes] of a classifier of the method's own, which inference averages with the model's."""
        return None

    def losses(self, run: Run) -> dict[str, Tensor]:
        """Weighted terms that this method adds to the training loss of `run`."""
        return {}

    def label_losses(self, run: Run, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Weighted terms that need the right answers: logits [B, classes] of the training pass `run`, and its targets.

        targets: labels [B], or class distributions [B, classes] where images are mixed.
        """
        return {}

    def metrics(self, run: Run) -> dict[str, Tensor]:
        """Figures worth logging for `run`."""
        return {}


class AttentionHooks(Hooks, ABC):
    """Hooks of a method that replaces softmax attention by one function over plain tensors, in every form of the stream.

    The function never forms an n x m map: score biases (LeViT) and attention dropout have no place in it and are left out.
    """

    alike: ClassVar[bool] = True
    """Whether the function does alike with all images of a ragged batch, so that it may run on several at once (see `mixed`)."""

    @abstractmethod
    def function(self, block: int, tokens: Tokens, scale: float) -> Attention:
        """What runs among the live tokens of each image in block `block` (1-based), as `mixed` calls it."""

    def attention(self, block: int, run: Run) -> Mix:
        return partial(self._mix, block)

    def _mix(self, block: int, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, fused: bool = True,
             dropout: float = 0.0, weights: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return mixed(self.function(block, tokens, scale), q, k, v, tokens, weights, self.alike)
