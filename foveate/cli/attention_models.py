"""Whole models in the race of attentions: a backbone at several image sizes, dense in three ways and with Taylor attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt
from foveate.errors import FoveateError
from foveate.measure.clock import Timing, interleave
from foveate.measure.race import CHUNK, DTYPES, TAYLOR, against_best, forms
from foveate.nn.attention import attend
from foveate.plan import Plan
from foveate.runtime.loading import synthetic_images
from foveate.train.base import create_base

if TYPE_CHECKING:
    from foveate.card import Card

PLAN = "vitality()"
DENSE = ("fused", "explicit", "chunked")


class Dense(nn.Module):
    """A dense model whose blocks run one version of softmax attention: "fused", "explicit", or "chunked" (256 queries at a time)."""

    def __init__(self, model: AdaptiveModel, version: str):
        super().__init__()
        self.model, self.version = model, version

    def forward(self, images: Tensor) -> Tensor:
        anatomy = self.model.anatomy
        tokens = anatomy.stem(images)
        for block in range(1, anatomy.card.depth + 1):
            tokens = anatomy.block(block, tokens, self._mix)
        return anatomy.head(tokens)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, tokens, scale: float, fused: bool, dropout: float, **more) -> Tensor:
        softmax, fused = self.model.anatomy.attend, self.version == "fused"
        if self.version != "chunked":
            return softmax(q, k, v, tokens, scale, fused, dropout, **more)
        return torch.cat([softmax(part, k, v, tokens, scale, fused, dropout) for part in q.split(CHUNK, 1)], 1)


def race_models(
    name: str, image_size: int | None, precision: str, batch: int = 1, compiled: bool = False, device: str = "cpu", repetitions: int = 15, warmup: int = 1,
    progress: Callable[[int, int], None] | None = None, seconds: float | None = None,
) -> tuple[Card, dict[str, Timing], dict[str, str]]:
    """Times the dense versions and the plan vitality() at one image size (None: the backbone's own) on random weights and images.

    compiled: each with torch.compile as well. Returns the backbone's card at that size, the timings by name, each compared with the best dense
    version of the very same rounds, and what did not compile.
    Raises FoveateError for backbones that take no img_size (then only their own is allowed) or no Taylor attention.
    """
    base = create_base(name, 10, **({} if image_size is None else {"img_size": image_size})).eval().requires_grad_(False)
    place = {"device": device, "dtype": DTYPES[precision]}
    dense, fast = (adapt(base, plan, name).to(**place) for plan in (Plan(), Plan.parse(PLAN)))
    if image_size is not None and tuple(dense.card.image_size) != (image_size, image_size):  # timm ignores img_size there
        raise FoveateError(f"image size {image_size} for {name}", f"its own of {dense.card.image_size[0]}x{dense.card.image_size[1]} pixels",
                           "leave --image-size out, or take a backbone with an img_size, such as deit_small_patch16_224")
    images = synthetic_images(dense.card, batch).to(**place)
    # Families with an attention of their own, whose scores have biases, know one version of it.
    versions = DENSE if dense.anatomy.attend is attend else DENSE[1:2]
    modules = {version: Dense(dense, version) for version in versions} | {TAYLOR: fast}
    with torch.inference_mode():
        runs, left_out = forms(modules, (images,), compiled)
        wait = torch.cuda.synchronize if device != "cpu" else None
        timings = interleave(runs, repetitions, warmup, progress, images=batch, seconds=seconds, synchronize=wait)
    return dense.card, against_best(timings, batch), left_out
