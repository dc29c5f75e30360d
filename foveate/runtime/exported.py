"""From a model to a graph of torch.export: what ONNX and torch artifacts are written from."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError


def exported_program(model: nn.Module, images: Tensor, single: bool, device: str = "cpu") -> torch.export.ExportedProgram:
    """The graph of a copy of `model`, in evaluation mode and float32.

    images: [B, C, H, W] to trace with; not those of a later check, or a decision frozen into the graph would pass unseen.
    single: the graph takes one image (per-image token counts); otherwise any number of at least one.
    Raises FoveateError where torch cannot export it.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False).to(device, torch.float32)
    # Two images at least: a batch of one would become a constant of the graph.
    images = (images[:1] if single else images.repeat(2, 1, 1, 1)[:2]).to(device, torch.float32)
    shapes = None if single else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with silent(), torch.no_grad():
            return torch.export.export(twin, (images,), dynamic_shapes=shapes, strict=False)
    except FoveateError:
        raise
    except Exception as error:  # torch raises whatever the traced code and its own tracing raise
        raise FoveateError(
            given=f"a model that torch.export cannot take ({named(error)})",
            allowed="models without decisions in Python that depend on the image" + ("" if single else ", and with a free batch size"),
            do='load it with backend="torch"',
        ) from error


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
