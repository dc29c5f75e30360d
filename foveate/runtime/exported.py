"""From a model to a graph of torch.export: what ONNX and torch artifacts are written from."""

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

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


def exported_program(
    model: nn.Module, images: Tensor | Sequence[Tensor], batch: int | None, precision: str = "fp32"
) -> torch.export.ExportedProgram:
    """The graph of a copy of `model`, in evaluation mode, from float32 images to float32 logits.

    images: [B, C, H, W] to trace with; not those of a later check, or a decision frozen into the graph would pass unseen.
    Of a segment all that it takes, tensors [B, n, ...]. batch: images that the graph takes, None for any number; where it
    is 1, n is free. precision: "fp32" or "bf16".
    Raises FoveateError where torch cannot export it.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", torch.float32)
    twin = twin if precision == "fp32" else _Cast(twin, torch.bfloat16)
    # Two images where any number may come: a batch of one would become a constant of the graph.
    count = 2 if batch is None else batch
    given = tuple(on_cpu(torch.cat([tensor] * -(-count // len(tensor)))[:count]) for tensor in ([images] if isinstance(images, Tensor) else images))
    try:
        with silent(), torch.no_grad():
            return torch.export.export(twin, given, dynamic_shapes=_shapes(twin, given, batch), strict=False)
    except FoveateError:
        raise
    except Exception as error:  # torch raises whatever the traced code and its own tracing raise
        raise FoveateError(
            given=f"a model that torch.export cannot take ({named(error)})",
            allowed="models without decisions in Python that depend on the image" + (", and with a free batch size" if batch is None else ""),
            do='load it with backend="torch"',
        ) from error


def _shapes(model: nn.Module, given: Sequence[Tensor], batch: int | None) -> tuple | None:
    """Which dimensions are free: the batch, or of one image the tokens, which are dimension 1 of all but maps."""
    if batch is None:
        free = [{0: torch.export.Dim("batch", min=1)}] * len(given)
    else:
        # A segment before the first stage works on all patches, whose number is no longer free there.
        free = [{1: torch.export.Dim.AUTO} if batch == 1 and tensor.dim() < 4 else None for tensor in given]
    # A forward of *given takes its arguments as one tuple.
    variadic = any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(model.forward).parameters.values())
    return (tuple(free),) if variadic else tuple(free)


def on_cpu(tensor: Tensor) -> Tensor:
    """Detached and on the CPU, in float32 where it is floating."""
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def mirrored(images: Tensor) -> Tensor:
    """Two images to convert with: mirrored, so that a graph is never checked on the images it was traced with."""
    return images.flip(-1).repeat(2, 1, 1, 1)[:2]


def named(error: Exception) -> str:
    """An exception of an exporter in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


@contextmanager
def silent() -> Iterator[None]:
    """Inside the block exporters print, log and warn to nobody: the check of what they made is what counts."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
