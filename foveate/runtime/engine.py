"""Engine: a callable from images to logits that says which backend runs it, in which precision, and how well it agrees."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foveate.budgeting import Ask
from foveate.budgets import no_exits
from foveate.errors import FoveateError
from foveate.runtime.agreement import Agreement
from foveate.trace import Trace


@dataclass
class Engine:
    """images [B, C, H, W], already normalised float32 -> logits [B, classes] float32.

    backend: "torch", "torch-compile", "openvino" or "onnxruntime". precision: "fp32", "bf16" or "int8", of the products of matrices.
    max_batch: images one call takes, None for any number.
    agreement: how far the logits lay from eager float32's at load.
    staged: images may leave on the way, so that budgets mean something; `run` then takes an Ask as well.
    passed_over: what backend="auto" did not take, "backend precision" -> the reason.
    One engine serves one thread at a time.
    """

    run: Callable[[Tensor], Tensor]
    backend: str
    precision: str
    max_batch: int | None = None
    agreement: Agreement | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    staged: bool = False

    def __call__(self, images: Tensor, budget_ms: Any = None, budget_mj: Any = None, strict: bool = True, target: str | None = None) -> Tensor:
        """Logits of `images`.

        budget_ms, budget_mj, strict, target: as AdaptiveModel.forward takes them, by a table of this engine. Raises FoveateError as that does,
        for another number of dimensions, and for more images than the engine takes.
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
        if images.dim() != 4:
            raise FoveateError(
                given=f"images of shape {list(images.shape)}",
                allowed="[batch, channels, height, width]",
                do="add a batch dimension with images[None]",
            )
        if self.max_batch is not None and len(images) > self.max_batch:
            raise FoveateError(
                given=f"{len(images)} images at once for a plan that keeps another number of tokens in each image, in {self.backend}",
                allowed=f"at most {self.max_batch} at once there; any number in torch",
                do='call it image by image, or load it with backend="torch" (or use select="topk")',
            )

    @property
    def name(self) -> str:
        """"backend precision", as in tables."""
        return f"{self.backend} {self.precision}"

    def __repr__(self) -> str:
        return f"Engine({self.name}, max_batch={self.max_batch}, {self.agreement})"
