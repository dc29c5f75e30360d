"""Calibration: the thresholds of a cascade from labelled images (Phase 2 of PIVOT, steps 2 to 4), and what other thresholds would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.adaptive import AdaptiveModel
from foveate.cascade import Cascade
from foveate.counting import macs_each
from foveate.efforts import Outcomes, calibrated
from foveate.errors import FoveateError
from foveate.gates import Gate
from foveate.ledger import Ledger
from foveate.nn.gates import difficulty, no_answer
from foveate.trace import Trace

Cost = Callable[[AdaptiveModel, Trace], Ledger | float]
"""What one image costs in an effort: (effort, its Trace of the images) -> a Ledger with milliseconds, or milliseconds."""


def threshold(gate: Gate, logits: Tensor, lec: float = 0.7) -> tuple[Gate, float]:
    """(the gate with the threshold at which at least `lec` of the images stay, the share that then stays); see `efforts.calibrated`.

    logits: of the low effort, [images, classes]. lec: PIVOT's low effort constraint, in (0, 1]; ties stay together.
    Raises FoveateError for no images, and where NaN logits leave too few images to stay.
    """
    if len(logits) == 0:
        raise FoveateError("logits of 0 images", "logits of the images to calibrate on", "PIVOT takes 256 images")
    return calibrated(gate, difficulty(gate, logits).cpu().numpy(), lec)


def calibrate(cascade: Cascade, data: Any, lec: float | Sequence[float] = 0.7, **settings: Any) -> Cascade:
    """The same cascade with the thresholds at which each effort but the last answers `lec` of the images that reach it.

    cascade: its gates say what is measured; their thresholds are not used. The result holds the same models (not copies); its plan
        stores the thresholds, and as fractions what each effort answered of `data`.
    data: a labelled set of foveate.train.load_data, (images, labels), or the Outcomes that `observe` made of one. Never the images
        that the cascade is judged on (semantics.md 22).
    lec: one share in (0, 1] for all stages, or one a stage. settings: of `observe`.
    Raises FoveateError for an empty set, a set of one class, and a lec that cannot be met, naming the best share that can.
    """
    _check_cascade(cascade)
    outcomes = data if isinstance(data, Outcomes) else observe(cascade, data, **settings)
    gates = outcomes.gates_for(lec)
    return cascade.gated(gates, outcomes.answered(gates).fractions)


@torch.no_grad()
def observe(
    cascade: Cascade,
    data: Any,
    batch_size: int = 250,
    cost: Cost | None = None,
    cost_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Outcomes:
    """Runs every effort on every image of a labelled set, in evaluation mode.

    data: as in `calibrate`. cost: what an image costs in an effort, such as
        `lambda effort, trace: fv.simulate(effort.card, effort.plan, target="zcu102", trace=trace)`, or measured milliseconds; a Ledger
        brings its energy along, for a number the energy is taken to grow with the delay (unit power). By default the MACs of each
        image stand in for its delay and its energy. cost_name: what to call it. progress: called with (images done, images in all).
    Raises FoveateError for an empty set and a set of one class, which say nothing about how hard images are, and for what is no such set.
    """
    _check_cascade(cascade)
    if type(batch_size) is not int or batch_size < 1:
        raise FoveateError(f"batch_size={batch_size!r}", "a whole number of images, at least 1", "leave it out for 250")
    labels = labels_of(data)
    logits: list[list[Tensor]] = [[] for _ in cascade.efforts]
    traces: list[list[Trace]] = [[] for _ in cascade.efforts]
    modes = [(module, module.training) for module in cascade.modules()]
    cascade.eval()
    seen = []
    try:
        for start in range(0, len(labels), batch_size):
            images, truth = batch_of(data, np.arange(start, min(start + batch_size, len(labels))))
            seen.append(truth)
            for effort, found, past in zip(cascade.efforts, logits, traces):
                answer, trace = effort.traced(images.to(next(effort.parameters())))
                found.append(answer.float().cpu())
                past.append(trace)
            if progress is not None:
                progress(min(start + batch_size, len(labels)), len(labels))
    finally:
        for module, training in modes:
            module.training = training
    answers, right = [torch.cat(found) for found in logits], torch.cat(seen)
    joined = [Trace.concatenate(past) for past in traces]
    macs = np.array([macs_each(effort, effort.plan, trace) for effort, trace in zip(cascade.efforts, joined)])
    hard = [difficulty(gate, found).numpy() for gate, found in zip(cascade.plan.gates, answers)]
    correct = np.array([(found.argmax(-1) == right).numpy() & ~no_answer(found).numpy() for found in answers])
    nan = np.array([no_answer(found).numpy() for found in answers])
    return Outcomes(cascade.plan.gates, np.array(hard), correct, nan, macs, **_costs(cascade, joined, macs, cost, cost_name))


def _costs(cascade: Cascade, traces: list[Trace], macs: np.ndarray, cost: Cost | None, name: str) -> dict[str, Any]:
    """delay and energy of each effort and image with their units, as Outcomes takes them."""
    if cost is None:
        return {"delay": macs / 1e9, "energy": macs / 1e9}
    figures = [cost(effort, trace) for effort, trace in zip(cascade.efforts, traces)]
    delays = [figure.latency_ms if isinstance(figure, Ledger) else figure for figure in figures]
    joules = [figure.energy_mj / 1000 if isinstance(figure, Ledger) and figure.energy_mj is not None else None for figure in figures]
    if any(not isinstance(delay, (int, float)) or not 0 < delay < float("inf") for delay in delays):
        raise FoveateError(f"costs of {delays} milliseconds", "a positive delay of every effort", "return a Ledger with latency_ms, or milliseconds")
    spread = lambda values: np.repeat(np.array(values, dtype=float)[:, None], macs.shape[1], axis=1)
    powered = None not in joules
    return {"delay": spread(delays), "energy": spread(joules if powered else delays), "delay_unit": "ms", "energy_unit": "J" if powered else "ms",
            "cost": (name or "delays as given") + ("" if powered else ", energy at unit power")}


def _check_cascade(cascade: Any) -> None:
    if not isinstance(cascade, Cascade):
        raise FoveateError(f"a {type(cascade).__name__} to calibrate", "a Cascade", "write fv.Cascade([low, high], gate=fv.Entropy(0.3))")


def labels_of(data: Any) -> Tensor:
    """The class numbers [N] of a labelled set, as `calibrate` takes it; raises FoveateError where they say nothing about how hard images are."""
    pair = isinstance(data, tuple) and len(data) == 2
    if not pair and not (hasattr(data, "labels") and hasattr(data, "batch")):
        raise FoveateError(f"a {type(data).__name__} to calibrate on", "a labelled set of foveate.train.load_data, or (images, labels)",
                           "give the images [N, C, H, W] with the class number of each")
    labels = torch.as_tensor(data[1] if pair else data.labels)
    if labels.dim() != 1 or pair and len(data[0]) != len(labels):
        raise FoveateError(f"{len(data[0]) if pair else len(labels)} images with labels of shape {list(labels.shape)}", "one class number an image",
                           "give labels [N] for images [N, C, H, W]")
    classes = len(labels.unique())
    if classes < 2:
        raise FoveateError(f"a calibration set of {len(labels)} images of {classes} class{'es' * (classes != 1)}",
                           "labelled images of several classes, 256 or more", "take images of all classes, as the model will see them")
    return labels


def batch_of(data: Any, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """(images, labels) of a labelled set at `indices`."""
    if isinstance(data, tuple):
        return data[0][indices], torch.as_tensor(data[1])[indices]
    batch = data.batch(indices)
    return batch.images, batch.labels
