"""How good a model is on a set of images, with the uncertainty that the set's size leaves."""

import math
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from foveate.nn.gates import no_answer
from foveate.train.images import PixelImages, ReadImages, warn_skipped


def evaluate(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: PixelImages | ReadImages,
    batch_size: int = 250,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Return accuracy_percent, uncertainty_percent (half a 95 % interval), loss, n, correct (bool [n]) and skipped (files).

    model: any callable images [B, 3, S, S] -> logits [B, C]; a module is evaluated in eval mode and put back.
    device: where the images go (default: where a module's parameters are, else the CPU).
    progress: called with (images done, images in all).
    An image whose logits are not numbers is not right, whatever its label.
    """
    device = device if device is not None else _device_of(model)
    correct, losses, skipped = [], [], []
    with in_eval(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images.batch(np.arange(start, min(start + batch_size, len(images))))
            logits = torch.as_tensor(model(batch.images.to(device))).float().cpu()
            correct.append((logits.argmax(-1) == batch.labels) & ~no_answer(logits))
            losses.append(cross_entropy(logits, batch.labels, reduction="none"))
            skipped.extend(batch.skipped)
            if progress is not None:
                progress(min(start + batch_size, len(images)), len(images))
    warn_skipped(images.name, skipped)
    right = torch.cat(correct).numpy()
    return {
        "accuracy_percent": 100 * float(right.mean()),
        "uncertainty_percent": 100 * binomial_uncertainty(int(right.sum()), len(right)),
        "loss": float(torch.cat(losses).double().mean()),
        "n": len(right),
        "correct": right,
        "skipped": skipped,
    }


def binomial_uncertainty(successes: int, trials: int) -> float:
    """Return half the width of Wilson's 95 % interval for a share of successes; unlike p(1-p)/n it is never 0."""
    z = 1.959964
    share = successes / trials
    return z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))


@contextmanager
def in_eval(model):
    """Put a module into eval mode inside the block and every part of it back as it was."""
    modules = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _device_of(model) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
