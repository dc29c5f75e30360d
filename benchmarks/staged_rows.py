"""Rows of benchmarks/cpu.py: cascades and early exits as staged execution, held against what the ledger says they cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from cells import Cell, milliseconds, ratio, timed
from token_rows import ANY, Asked, backbone, calls, engine

import foveate as fv
from foveate.measure import Spread
from foveate.nn.gates import difficulty
from foveate.runtime import load_engine
from foveate.runtime.cascade import CascadeMaker, Regrouped
from foveate.runtime.loading import synthetic_images

LOW = "spvit(after=[3,6,9],keep=[0.5,0.25,0.125])"
EXITS = "earlyexit(after=[4,8])"
LEAST = 90.0
BACKENDS = ("openvino", "torch")


def cascade(asked: Asked) -> Iterator[Cell]:
    """A cascade in which a fifth of the images goes on, over its high effort alone, in percent of what the ledger predicts."""
    base, batch = backbone(asked.model), max(asked.batches)
    with torch.no_grad():
        base.get_classifier().weight.mul_(200)  # as it starts, all images are about equally unsure
    low, high = (fv.adapt(base, fv.Plan.parse(plan)).eval() for plan in (LOW, "dense"))
    images, going = synthetic_images(high.card, batch), max(1, round(0.2 * batch))
    cost = fv.count(low).macs / fv.count(high).macs
    for backend in BACKENDS:
        whole = CascadeMaker(fv.Cascade([low, high], fv.Entropy(0.5)), images, tolerance=ANY).engine(backend, "bf16")
        alone = load_engine(high, backend, "bf16", images, tolerance=ANY)
        unsure = difficulty(fv.Entropy(0.5), whole.run.engines[0](images)).sort().values
        run = Regrouped(whole.run.engines, [fv.Entropy(float(unsure[-going - 1] + unsure[-going]) / 2)])
        run(images)
        if run.ran[1] != going:
            raise RuntimeError(f"{run.ran[1]} instead of {going} of {batch} images go on")
        timings = timed(calls({"high effort": alone, "cascade": run}, images), batch, asked.rounds, asked.least_ms)
        predicted, measured = 1 / (cost + going / batch), ratio(timings, "high effort", "cascade")
        said = f"F_H = {going / batch:.3f}, low effort {100 * cost:.0f} % of the MACs: ledger {predicted:.2f}x, measured {measured.median:.2f}x; {milliseconds(timings)}"
        yield Cell(f"cascade, % of the ledger's prediction, {backend} bf16", f"b{batch}", _scaled(measured, 100 / predicted), LEAST, "%", said)


def exits(asked: Asked) -> Iterator[Cell]:
    """Staged exits over the dense model: where 10 of 16 images leave at the first exit, and where nobody leaves."""
    base, batch = backbone(asked.model), max(asked.batches)
    model = fv.adapt(base, fv.Plan.parse(EXITS)).eval()
    images, leaving = synthetic_images(model.card, batch), max(1, 10 * batch // 16)
    first, *_, last = model.exit_blocks
    share = leaving / batch
    macs = lambda *shares: fv.count(model, exits=shares).macs / fv.count(base, "dense").macs
    for backend in BACKENDS:
        staged = load_engine(model, backend, "bf16", images, tolerance=ANY)
        dense = engine(base, "dense", backend, "bf16", images)
        forced = {"10 of 16 leave": [first] * leaving + [last] * (batch - leaving), "nobody leaves": [last] * batch}
        runs = {"dense": lambda: dense(images)} | {name: _forced(staged, images, ends) for name, ends in forced.items()}
        timings = timed(runs, batch, asked.rounds, asked.least_ms)
        predicted, measured = 1 / macs(share, 0.0, 1 - share), ratio(timings, "dense", "10 of 16 leave")
        said = f"{leaving} of {batch} leave after block {first}: ledger {predicted:.2f}x, measured {measured.median:.2f}x; {milliseconds(timings)}"
        yield Cell(f"exits, % of the ledger's prediction, {backend} bf16", f"b{batch}", _scaled(measured, 100 / predicted), LEAST, "%", said)
        over = _scaled(ratio(timings, "nobody leaves", "dense"), 100, -100)
        yield Cell(f"exits, overhead where nobody leaves, {backend} bf16", f"b{batch}", over, None, "%",
                   f"the exits themselves are {100 * (macs(0.0, 0.0, 1.0) - 1):.1f} % of the MACs")


def _forced(staged: fv.runtime.Engine, images: torch.Tensor, ends: list[int]):
    """A call in which each image leaves at the exit that `ends` names."""
    if staged.backend != "torch":
        return lambda: staged.run.traced(images, None, ends)
    model, taken = staged.run.model, staged.run.taken
    with torch.inference_mode():
        trace = model.traced(taken(images))[1]
    trace.exits = list(ends)

    @torch.inference_mode()
    def run() -> object:
        return model.traced(taken(images), trace)

    return run


def _scaled(spread: Spread, factor: float, shift: float = 0.0) -> Spread:
    return Spread(*(np.asarray(spread) * factor + shift).tolist())
