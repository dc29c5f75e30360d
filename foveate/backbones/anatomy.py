"""Anatomy: the one view of a backbone (stem, blocks, head) through which every plan is executed.

A family adopts a timm model: it runs the model's own children in their own order and refuses, naming the model and
the child, whatever it does not know. A block whose tokens are all there runs natively, bit for bit as timm wrote it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Callable, ClassVar

import torch
from torch import Tensor, nn

from foveate.card import Card
from foveate.errors import FoveateError
from foveate.nn.attention import SKIP, Mix
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import PACKAGE, Tokens, prefix_rows

Between = Callable[[Tokens], Tokens]


def refuse(name: str, what: str, allowed: str, do: str = "use a supported backbone (`foveate models`), or open an issue naming this one"):
    """Raises the FoveateError for a backbone or a part of it that foveate does not know."""
    raise FoveateError(given=f"{name}: {what}", allowed=allowed, do=do)


def check_children(module: nn.Module, known: set[str], required: set[str], name: str, path: str) -> None:
    """Raises FoveateError unless `module`'s children and own parameters are known and the required ones present."""
    children = {n for n, c in module.named_children()} | {n for n, _ in module.named_parameters(recurse=False)}
    if extra := sorted(children - known):
        refuse(name, f"{path} ({type(module).__name__}) has an unknown child {extra[0]!r}",
               f"{type(module).__name__} with {', '.join(sorted(known))}",
               f"remove {path}.{extra[0]}, or fold it into a child that is known, so that no result is silently wrong")
    if missing := sorted(required - children):
        refuse(name, f"{path} ({type(module).__name__}) lacks the child {missing[0]!r}", f"blocks with {', '.join(sorted(required))}")


def check_image_size(model: nn.Module, card: Card) -> None:
    """Raises FoveateError where the image is not a whole number of patches: timm would silently ignore its last rows."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    stride = getattr(getattr(embed, "conv", None), "stride", patch)  # PiT's patches overlap
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    for size, width, step in zip(card.image_size, patch, stride):
        if (size - width) % step:
            refuse(card.name, f"images of {card.image_size[0]}x{card.image_size[1]} pixels for patches of {width} pixels every {step}",
                   f"sizes such as {size - (size - width) % step} or {size - (size - width) % step + step}",
                   "create the model with an img_size that its patch divides")


class Anatomy(ABC):
    """A backbone of one family, seen as stem, blocks 1...depth and head.

    Subclasses implement `check`, `stem`, `run`, `head` and `features`; `block` chooses the form.
    """

    family: ClassVar[str]
    resized_by: ClassVar[str] = "img_size=... (divisible by its patch) or dynamic_img_size=True"
    natively: bool = True
    """Whether blocks with all their tokens run as timm wrote them; an engine that chooses kernels itself sets it to False."""

    def __init__(self, model: nn.Module, card: Card):
        self.model, self.card = model, card
        self.check()

    @classmethod
    @abstractmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is exactly of this family (subclasses of timm's classes are not: they may compute something else)."""

    @abstractmethod
    def check(self) -> None:
        """Raises FoveateError for a structure that this family does not know."""

    def check_attention(self) -> None:
        """Raises FoveateError for blocks that no method may touch, because their attention means something else (the idle plan is fine there)."""

    def check_prunable(self) -> None:
        """Raises FoveateError for what only runs with all its tokens."""

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks in order; blocks[0] is block 1."""

    @abstractmethod
    def stem(self, images: Tensor) -> Tokens:
        """Images [B, 3, H, W] to the tokens that enter block 1."""

    @abstractmethod
    def run(self, index: int, tokens: Tokens, mix: Mix, between: Between | None = None) -> Tokens:
        """Block `index` (1-based) in any form, with `mix` as attention (see Hooks.attention) or, for SKIP, without its attention branch.

        between: called on the tokens between attention and MLP; families that Card.check_inside refuses leave it out.
        """

    @abstractmethod
    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        """Block `index` as timm runs it, on uniform tokens."""

    def next_stage(self, index: int, tokens: Tokens) -> Tokens:
        """The transition behind block `index`, where a stage ends there (Swin's merging, PiT's pooling)."""
        return tokens

    @abstractmethod
    def head(self, tokens: Tokens) -> Tensor:
        """Final norm, pooling over live tokens and classifier: logits [B, classes]."""

    def heads(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """The logits of each classifier, whose mean is `head`: the class token's and, in distilled models, the distillation token's."""
        return (self.head(tokens),)

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm between the last block and the classifier, for rows x [..., D]."""
        return self.model.norm(x)

    def pooled(self, tokens: Tokens) -> Tensor:
        """What an early exit reads of the tokens, [B, D], before any norm: where the head reads a class token that one, else a mean.

        The mean goes over live patches, and packages with their weight; over prefix tokens where the head's average does. Of heads
        that read more only this is left: not the distillation token, no patch votes (LV-ViT), no map pooling (SigLIP).
        """
        if self.card.pool == "token":
            return prefix_rows(tokens)[:, 0]
        if not tokens.pruned:
            return tokens.x[:, 0 if self.averages_prefix else tokens.prefix:].mean(1)
        return weighted_mean(*pooling_weights(tokens, self.averages_prefix))

    @property
    def averages_prefix(self) -> bool:
        """Whether the head's average goes over prefix tokens too."""
        return self.card.pool == "avg" and getattr(self.model, "pool_include_prefix", False)

    @abstractmethod
    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Final patch features [B, N, D] of the masked or dense form and their decision weights [B, N]."""

    def block(self, index: int, tokens: Tokens, mix: Mix | None = None, between: Between | None = None) -> Tokens:
        """Block `index` (1-based) and the stage transition behind it.

        mix: replaces softmax attention where a method brings its own; SKIP leaves it out. between: see `run`.
        """
        if between is not None:
            tokens = self.run(index, tokens, mix or self.attend, between)
        elif mix is None and self.natively and not tokens.masked and not tokens.ragged and self.native(tokens):
            tokens = self.run_native(index, tokens)
        else:
            tokens = self.run(index, tokens, mix or self.attend)
        return self.next_stage(index, tokens)

    def native(self, tokens: Tokens) -> bool:
        """Whether timm's own block forward is right for these uniform tokens."""
        return True

    @property
    @abstractmethod
    def attend(self) -> Mix:
        """Softmax attention among live tokens as this family computes it."""


def residual_block(block: nn.Module, tokens: Tokens, mix: Mix, attention: Callable[..., Tensor], between: Between | None = None) -> Tokens:
    """timm's pre-norm block over its own children: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    attention: called as attention(attn, norm1(x), tokens=tokens, mix=mix), unless mix is SKIP. between: called on the tokens in the middle.
    """
    x = tokens.x
    if mix is not SKIP:
        x = x + block.drop_path1(block.ls1(attention(block.attn, block.norm1(x), tokens=tokens, mix=mix)))
    if between is not None:
        tokens = between(tokens.with_x(x))
        x = tokens.x
    return tokens.with_x(x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))


def pooling_weights(tokens: Tokens, include_prefix: bool) -> tuple[Tensor, Tensor]:
    """(x [B, n, D], weights [B, n]) for pooling: live patches count with D, packages with `package_weight`, prefixes 0 or 1.

    A token into which others were merged counts for all of them.
    """
    places = tokens.places()
    weights = _kind_weights(places, tokens.package_weight, include_prefix)
    if tokens.sizes is not None:
        weights = weights * tokens.size_of_rows()
    if tokens.ragged:
        image = tokens.image_of_row()
        starts = torch.tensor((0, *tokens.lengths[:-1]), device=image.device).cumsum(0)
        column = torch.arange(len(image), device=image.device) - starts[image]
        x = tokens.x.new_zeros(tokens.images, max(tokens.lengths), tokens.x.shape[1])
        x[image, column] = tokens.x
        padded = at_least_float32(x).new_zeros(x.shape[:2])
        padded[image, column] = weights.to(padded.dtype)
        return x, padded
    return tokens.x, weights * tokens.live if tokens.masked else weights


def _kind_weights(places: Tensor, package_weight: float, include_prefix: bool) -> Tensor:
    weights = torch.where(places >= 0, 1.0, float(include_prefix))
    return torch.where(places == PACKAGE, package_weight, weights)


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens: x [B, n, D], weights [B, n] -> [B, D], summed in float32."""
    wide = at_least_float32(x)
    weights = weights.to(wide.dtype)
    return ((weights[:, None] @ wide)[:, 0] / weights.sum(1, keepdim=True)).to(x.dtype)
