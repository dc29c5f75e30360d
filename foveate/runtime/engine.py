"""Engine: a callable from images to logits that says which backend runs it, in which precision, and how well it agrees."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from foveate.errors import FoveateError
from foveate.runtime.agreement import Agreement


@dataclass
class Engine:
    """images [B, C, H, W], already normalised float32 -> logits [B, classes] float32.

    backend: "torch", "torch-compile", "openvino" or "onnxruntime". precision: "fp32", "bf16" or "int8", of the products of matrices.
    max_batch: images one call takes, None for any number.
    agreement: how far the logits lay from eager float32's at load.
    passed_over: what backend="auto" did not take, "backend precision" -> the reason.
    One engine serves one thread at a time.
    """

    run: Callable[[Tensor], Tensor]
    backend: str
    precision: str
    max_batch: int | None = None
    agreement: Agreement | None = None
    passed_over: dict[str, str] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of `images`; raises FoveateError for another number of dimensions or more images than the engine takes."""
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
        return self.run(images)

    @property
    def name(self) -> str:
        """"backend precision", as in tables."""
        return f"{self.backend} {self.precision}"

    def __repr__(self) -> str:
        return f"Engine({self.name}, max_batch={self.max_batch}, {self.agreement})"
