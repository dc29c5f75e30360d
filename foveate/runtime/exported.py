"""From a model to a graph of torch.export: what ONNX and torch artifacts are written from."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError


class _Cast(nn.Module):
    """A model in another dtype between float32 images and float32 logits."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(images.to(self.dtype))
        return found.float() if isinstance(found, Tensor) else (found[0].float(), *found[1:])


def exported_program(model: nn.Module, images: Tensor, batch: int | None, precision: str = "fp32") -> torch.export.ExportedProgram:
    """The graph of a copy of `model`, in evaluation mode, from float32 images to float32 logits.

    images: [B, C, H, W] to trace with; not those of a later check, or a decision frozen into the graph would pass unseen.
    batch: images that the graph takes, None for any number. precision: "fp32" or "bf16".
    Raises FoveateError where torch cannot export it.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", torch.float32)
    twin = twin if precision == "fp32" else _Cast(twin, torch.bfloat16)
    # Two images where any number may come: a batch of one would become a constant of the graph.
    count = 2 if batch is None else batch
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count].to("cpu", torch.float32)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    try:
        with silent(), torch.no_grad():
            return torch.export.export(twin, (images,), dynamic_shapes=shapes, strict=False)
    except FoveateError:
        raise
    except Exception as error:  # torch raises whatever the traced code and its own tracing raise
        raise FoveateError(
            given=f"a model that torch.export cannot take ({named(error)})",
            allowed="models without decisions in Python that depend on the image" + (", and with a free batch size" if batch is None else ""),
            do='load it with backend="torch"',
        ) from error


def mirrored(images: Tensor) -> Tensor:
    """Two images to convert with: mirrored, so that a graph is never checked on the images it was traced with."""
    return images.flip(-1).repeat(2, 1, 1, 1)[:2]


def named(error: Exception) -> str:
    """An exception of an exporter in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


@contextmanager
def silent() -> Iterator[None]:
    """Inside the block neither warnings nor log lines of exporters appear: the check of what they made is what counts."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
