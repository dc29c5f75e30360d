"""Runs all exits of a model on a labelled set, and sets the threshold that an accuracy or a budget of MACs asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.adaptive import AdaptiveModel
from foveate.adoption import replan
from foveate.calibration import batch_of, labels_of
from foveate.counting import macs_at_exits
from foveate.errors import FoveateError
from foveate.exit_stats import ExitOutcomes
from foveate.methods.earlyexit.config import EarlyExit
from foveate.nn.exits import sureness
from foveate.nn.gates import no_answer
from foveate.plan import Plan
from foveate.trace import Trace


@torch.no_grad()
def observe_exits(model: AdaptiveModel, data: Any, batch_size: int = 250, progress: Callable[[int, int], None] | None = None) -> ExitOutcomes:
    """What every exit says of every image, from one pass in which nobody leaves, in evaluation mode.

    model: under a plan with fv.EarlyExit. data: a labelled set of foveate.train.load_data, or (images, labels).
    progress: called with (images done, images in all).
    Raises FoveateError for a plan without exits, an empty set and a set of one class.
    """
    config = exits_of(model)
    if type(batch_size) is not int or batch_size < 1:
        raise FoveateError(f"batch_size={batch_size!r}", "a whole number of images, at least 1", "leave it out for 250")
    labels = labels_of(data)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    measures: list[Tensor] = []
    right: list[Tensor] = []
    traces: list[Trace] = []
    try:
        for start in range(0, len(labels), batch_size):
            images, truth = batch_of(data, np.arange(start, min(start + batch_size, len(labels))))
            answers, trace = model.exit_logits(images.to(next(model.parameters())))
            found = [logits.float().cpu() for logits in answers.values()]
            measures.append(torch.stack([sureness(config.gate, found[: number + 1]) for number in range(len(found))]))
            right.append(torch.stack([(logits.argmax(-1) == truth) & ~no_answer(logits) for logits in found]))
            traces.append(trace)
            if progress is not None:
                progress(min(start + batch_size, len(labels)), len(labels))
    finally:
        for module, training in modes:
            module.training = training
    macs = macs_at_exits(model.card, model.plan, Trace.concatenate(traces))
    return ExitOutcomes(config, model.exit_blocks, torch.cat(measures, 1).numpy(), torch.cat(right, 1).numpy(), np.array(list(macs.values())))


def calibrate_exits(model: AdaptiveModel, data: Any, accuracy_percent: float | None = None, macs: float | None = None, **settings: Any) -> AdaptiveModel:
    """The same model with the threshold that is cheapest at this accuracy, or most accurate within these MACs of the mean image.

    data: as in `observe_exits`, or the ExitOutcomes that it made; never the images that the model is judged on (semantics.md 22).
    settings: of `observe_exits`. Raises FoveateError as ExitOutcomes.calibrated does.
    """
    config = exits_of(model)
    outcomes = data if isinstance(data, ExitOutcomes) else observe_exits(model, data, **settings)
    chosen = config.but(threshold=outcomes.calibrated(accuracy_percent, macs).threshold)
    return replan(model, Plan(chosen if method is config else method for method in model.plan.methods))


def exits_of(model: Any) -> EarlyExit:
    """The settings of a model's exits; raises FoveateError for a model without any."""
    found = model.plan.find(EarlyExit.name) if isinstance(model, AdaptiveModel) else None
    if found is None:
        what = f"{model.card.name} under the plan {model.plan}" if isinstance(model, AdaptiveModel) else f"a {type(model).__name__}"
        raise FoveateError(f"{what}, which has no early exits", "models adapted to a plan with fv.EarlyExit",
                           'train some: foveate adapt RUN --plan "earlyexit(after=[4,8])" --out runs/exits')
    return found
