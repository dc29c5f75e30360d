"""Whether images and decisions fit an adapted model, said in three parts before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.backbones.anatomy import Anatomy
from foveate.card import Card
from foveate.errors import FoveateError
from foveate.trace import Trace


def check_images(anatomy: Anatomy, images: Tensor) -> None:
    """Raises FoveateError unless images are floating-point [B, C, H, W] of a size that the backbone takes."""
    card = anatomy.card
    chans, size = card.in_chans, tuple(card.image_size)
    if images.dim() != 4 or images.shape[1] != chans:
        raise FoveateError(f"images of shape {list(images.shape)}", f"[batch, {chans}, height, width]",
                           "add a batch dimension with images[None]" if images.dim() == 3 else "convert the images to that shape")
    if not images.is_floating_point():
        raise FoveateError(f"images of {images.dtype}", "floating-point images, already normalised",
                           "divide by 255, subtract the mean and divide by the deviation: model.pretrained_cfg has both")
    if tuple(images.shape[-2:]) == size:
        return
    given, embed = f"images of {images.shape[-2]}x{images.shape[-1]} pixels for {card.name}", getattr(anatomy.model, "patch_embed", None)
    if not getattr(anatomy.model, "dynamic_img_size", False):
        raise FoveateError(given, f"{size[0]}x{size[1]} pixels",
                           f"resize the images, or create the model with {anatomy.resized_by}")
    if not embed.dynamic_img_pad and any(side % patch for side, patch in zip(images.shape[-2:], embed.patch_size)):
        raise FoveateError(given, f"sides divisible by the patch of {embed.patch_size[0]}x{embed.patch_size[1]} pixels",
                           "resize or pad the images, or create the model with dynamic_img_pad=True")


def check_eager(card: Card, exits: Sequence[int]) -> None:
    """Raises FoveateError while a graph is being traced: it would hold the way that one image took through the exits for all of them."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        raise FoveateError(f"{card.name} with exits after blocks {', '.join(map(str, exits[:-1]))} in one exported or compiled graph",
                           "graphs without exits, in which every image takes the same way",
                           "export the segments between the exits each by itself, or leave the exits out of the plan")


def check_decisions(card: Card, stages: Sequence[int], exits: Sequence[int], trace: Any, images: Tensor) -> Trace | None:
    """`trace` itself, if it holds decisions for these images, these pruning stages and these exits; None for None.

    stages, exits: 1-based blocks. Raises FoveateError for other images, another plan, or an image that keeps nothing on its way.
    """
    if trace is None:
        return None
    if not isinstance(trace, Trace) or trace.images != len(images) or len(trace.kept) != len(stages):
        raise FoveateError(
            f"decisions for {trace.images} images and {len(trace.kept)} stages" if isinstance(trace, Trace) else f"decisions {trace!r}",
            f"decisions for these {len(images)} images and the plan's {len(stages)} stages",
            "use the Trace that model.traced(images) returned for the same images")
    if bool(exits) != bool(trace.exits) or not set(trace.exits) <= set(exits):
        raise FoveateError(f"decisions whose images leave behind blocks {sorted(set(trace.exits))}", f"blocks {sorted(exits)}, the exits of this plan",
                           "use the Trace that model.traced(images) returned for the same images")
    for kept, block in zip(trace.kept, stages):
        fits = kept.shape == (len(images), card.tokens_after(block)) or tuple(images.shape[-2:]) != tuple(card.image_size)
        there = [place for place in range(len(images)) if not exits or trace.exits[place] > block]
        if not fits or not kept[there].any(axis=1).all():
            raise FoveateError(
                f"decisions after block {block} that keep {kept.sum(axis=-1).tolist()} of {kept.shape[-1]} patches",
                f"at least one of the {card.tokens_after(block)} patches of every image", "use a Trace of this backbone, with a survivor in every image")
    return trace
