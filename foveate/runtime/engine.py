"""Engine: a callable from images to logits that says which backend runs it, in which precision, and how well it agrees."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.budgeting import Ask
from foveate.budgets import no_exits
from foveate.errors import FoveateError
from foveate.runtime.agreement import Agreement
from foveate.runtime.fallback import Fallback
from foveate.trace import Trace

LOUDEST = 30.0
"""Normalised images hold values of a few units; larger ones than this come from pixels that were only read, in 0...255."""


@dataclass
class Engine:
    """images [B, C, H, W], already normalised float32 -> logits [B, classes] float32.

    backend: "torch", "torch-compile", "openvino" or "onnxruntime". precision: "fp32", "bf16" or "int8", of the products of matrices.
    max_batch: images one call takes, None for any number.
    agreement: how far the logits lay from eager float32's at load.
    staged: images may leave on the way, so that budgets mean something; `run` then takes an Ask as well.
    passed_over: what was not taken, "backend precision" -> the reason. fallback: why the model runs densely, if it does.
    size: (channels, height, width) that it takes, None where the model itself says. choice: the table of backend="auto".
    One engine serves one thread at a time.
    """

    run: Callable[[Tensor], Tensor]
    backend: str
    precision: str
    max_batch: int | None = None
    agreement: Agreement | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    staged: bool = False
    size: tuple[int, ...] | None = None
    fallback: Fallback | None = None
    choice: Any = None

    def __call__(self, images: Tensor, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True, target: str | None = None) -> Tensor:
        """Logits of `images`.

        budget_ms, budget_mj, strict, target: as AdaptiveModel.forward takes them, by a table of this engine. Raises FoveateError as that does,
        for images of another size or type, none at all, more than the engine takes, and such that are no normalised images (NaN, infinite
        or pixels of 0...255).
        """
        self._check(images)
        ask = Ask(budget_ms, budget_mj, strict, target)
        if not ask.anything:
            return self.run(images)
        ask.check(self.staged, False, f"an engine in {self.name}")
        return self.run(images, ask)

    def traced(self, images: Tensor, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True, target: str | None = None) -> tuple[Tensor, Trace]:
        """Logits and the Trace of who left where, and whose budget was short; in torch with all that AdaptiveModel.traced says.

        Arguments and errors as of a call; also raises FoveateError for an engine that runs as a whole.
        """
        self._check(images)
        if not self.staged:
            raise no_exits("a trace", f"an engine in {self.name}")
        ask = Ask(budget_ms, budget_mj, strict, target)
        return self.run.traced(images, ask if ask.anything else None)

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dim() != 4 or len(images) == 0:
            shaped = isinstance(images, Tensor)
            raise FoveateError(
                given=f"images of shape {list(images.shape)}" if shaped else f"images as a {type(images).__name__}",
                allowed="[batch, channels, height, width], at least one",
                do="add a batch dimension with images[None]" if shaped and images.dim() == 3 else "give a torch tensor of images",
            )
        if not images.is_floating_point():
            raise _unnormalised(f"images of {images.dtype}")
        if self.size is not None and tuple(images.shape[1:]) != self.size:
            raise FoveateError(
                given=f"images of shape {list(images.shape)}",
                allowed=f"[batch, {', '.join(map(str, self.size))}], the size that this engine was made for",
                do=f"resize them to {self.size[1]}x{self.size[2]} pixels, or load an engine with an example of that size",
            )
        if self.max_batch is not None and len(images) > self.max_batch:
            raise FoveateError(
                given=f"{len(images)} images at once for a plan that keeps another number of tokens in each image, in {self.backend}",
                allowed=f"at most {self.max_batch} at once there; any number in torch",
                do='call it image by image, or load it with backend="torch" (or use select="topk")',
            )
        # One pass over the images: 0.2 % of the time of a DeiT-S in 8 bits, whose answers would be finite numbers even for NaN.
        least, most = torch.aminmax(images.detach())
        if not max(-least, most) <= LOUDEST:
            self._refuse_values(images)

    def _refuse_values(self, images: Tensor) -> None:
        broken = (~images.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
        if broken:
            raise FoveateError(
                given=f"NaN or infinite values in image {broken[0]}" + (f" and {len(broken) - 1} more" if broken[1:] else ""),
                allowed="finite numbers",
                do="look at how these images are read and normalised (a deviation of 0?)",
            )
        raise _unnormalised(f"images with values of {float(images.min()):.4g} to {float(images.max()):.4g}")

    @property
    def name(self) -> str:
        """"backend precision", as in tables."""
        return f"{self.backend} {self.precision}"

    def __repr__(self) -> str:
        return f"Engine({self.name}, max_batch={self.max_batch}, {self.agreement})"


def _unnormalised(given: str) -> FoveateError:
    return FoveateError(
        given=given,
        allowed=f"floating-point images, already normalised: values of a few units, {LOUDEST:.0f} at most",
        do="divide by 255, subtract the mean and divide by the deviation: model.pretrained_cfg has both",
    )
