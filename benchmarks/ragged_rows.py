"""Rows of benchmarks/cpu.py: batches whose images keep different numbers of tokens, over the same blocks run densely at the same counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from cells import Cell, milliseconds, ratio, timed
from token_rows import ANY, Asked, backbone, calls, engine
from torch import Tensor, nn

import foveate as fv
from foveate.adaptive import AdaptiveModel
from foveate.measure import Spread
from foveate.nn.tokens import Tokens
from foveate.runtime import load_engine

KEEP = {3: 0.637, 6: 0.406, 9: 0.259}
IRET_KEEP = (87 / 196, 26 / 196, 11 / 196)
"""Of 196 patches, beside two prefix tokens: 89, 28 and 13 tokens."""
STEPS = 11


class Counted(nn.Module):
    """The ideal: a dense model whose tokens are cut to `counts[block - 1]` before each block, the first ones being kept; nothing decides."""

    def __init__(self, dense: AdaptiveModel, counts: Sequence[int]):
        super().__init__()
        self.dense, self.counts = dense, tuple(counts)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.dense.anatomy.stem(images)
        for block, count in enumerate(self.counts, 1):
            tokens = self.dense.anatomy.block(block, first(tokens, count))
        return self.dense.anatomy.head(tokens)


def first(tokens: Tokens, count: int) -> Tokens:
    """The first `count` tokens of each image."""
    if count >= tokens.x.shape[1]:
        return tokens
    return replace(tokens, x=tokens.x[:, :count], place=tokens.places()[:, :count])


def pictures(card, count: int) -> Tensor:
    """Normalised noise at several scales and strengths, so that images differ in how many tokens they keep."""
    dice = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, card.in_chans, 7, 7, generator=dice) * torch.linspace(0.2, 3, count)[:, None, None, None]
    fine = torch.randn(count, card.in_chans, *card.image_size, generator=dice)
    return nn.functional.interpolate(coarse, size=tuple(card.image_size), mode="bicubic") + 0.3 * fine


def ragged(asked: Asked) -> Iterator[Cell]:
    """SPViT with per-image counts in torch bf16, in percent of a dense batch of as many tokens."""
    base, batch = backbone(asked.model), max(asked.batches)
    model = fv.adapt(base, fv.Plan([fv.SPViT(after=tuple(KEEP), keep=tuple(KEEP.values()), select="argmax")])).eval()
    images = pictures(model.card, batch)
    adaptive = load_engine(model, "torch", "bf16", images, tolerance=ANY)
    for stage, (block, keep) in enumerate(KEEP.items()):
        bias = adaptive.run.model.spvit.selectors[str(block)].score.bias
        start = bias.detach().clone()

        def lean(amount: float, bias=bias, start=start) -> None:
            with torch.no_grad():
                bias.copy_(start)
                bias[:, 0] += amount

        steer(lean, lambda stage=stage: _kept(adaptive, images, stage), keep, -4.0, 4.0)
    yield _of_ideal("adaptive batch, % of ideal, torch bf16", adaptive, base, images, asked, 90.0)


def iret(asked: Asked) -> Iterator[Cell]:
    """IRET at 89/28/13 tokens: in percent of the same blocks run densely at those counts, and over dense DeiT-S, in each backend."""
    base, other = backbone(asked.iret), backbone(asked.model)
    dense = fv.adapt(base, fv.Plan()).eval()
    images = pictures(dense.card, max(asked.batches))
    plan = _thresholds(base, images)
    model = fv.adapt(base, plan).eval()
    adaptive = load_engine(model, "torch", "bf16", images, tolerance=ANY)
    for batch in asked.batches:
        yield _of_ideal("IRET, % of its blocks run densely, torch bf16", adaptive, base, images[:batch], asked, 80.0)
    graph = load_engine(model, "openvino", "bf16", images, tolerance=ANY)
    counted = load_engine(Counted(dense, _counts(model.traced(images[:1])[1])).eval(), "openvino", "bf16", images, tolerance=ANY)
    timings = timed(calls({"ideal": counted, "IRET": graph}, images[:1]), 1, asked.rounds, asked.least_ms)
    yield Cell("IRET, % of its blocks run densely, openvino bf16", "b1", _percent(timings), 80.0, "%", milliseconds(timings))
    for backend, precision, fast, batches in (("torch", "bf16", adaptive, asked.batches), ("openvino", "bf16", graph, (1,))):
        slow = engine(other, "dense", backend, precision, _sized(images, other))
        for batch in batches:
            runs = {"dense": lambda: slow(_sized(images[:batch], other)), "IRET": lambda: fast(images[:batch])}
            timings = timed(runs, batch, asked.rounds, asked.least_ms)
            yield Cell(f"IRET over dense {asked.model}, {backend} {precision}", f"b{batch}", ratio(timings, "dense", "IRET"), note=milliseconds(timings))


def steer(lean: Callable[[float], None], kept: Callable[[], float], wanted: float, low: float, high: float) -> None:
    """Bisects the argument of `lean`, of which `kept` grows, until `kept` is about `wanted`."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        lean(middle)
        low, high = (middle, high) if kept() < wanted else (low, middle)
    lean((low + high) / 2)


def _thresholds(base: nn.Module, images: Tensor) -> fv.Plan:
    """The plan of IRET under which the mean image keeps IRET_KEEP of its patches."""
    adaptive = load_engine(fv.adapt(base, fv.Plan([fv.IRET(threshold=1e-9)])).eval(), "torch", "bf16", images, tolerance=ANY)
    limits = adaptive.run.model.iret.thresholds
    for stage, (block, keep) in enumerate(zip(sorted(limits), IRET_KEEP)):
        steer(lambda amount, block=block: limits.__setitem__(block, 10.0**-amount), lambda stage=stage: _kept(adaptive, images, stage), keep, 1.0, 5.0)
    return fv.Plan([fv.IRET(threshold=tuple(limits[block] for block in sorted(limits)))])


def _kept(adaptive: fv.runtime.Engine, images: Tensor, stage: int) -> float:
    """Share of the patches that are there behind a stage, mean over images."""
    return adaptive.run.traced(images)[1].keep_rates[stage]


def _of_ideal(row: str, adaptive: fv.runtime.Engine, base: nn.Module, images: Tensor, asked: Asked, least: float) -> Cell:
    """One cell: the time of a dense batch of as many tokens over that of the adaptive one, both in torch bf16."""
    trace = adaptive.run.traced(images)[1]
    plain = engine(base, "dense", "torch", "bf16", images)
    ideal = Counted(plain.run.model, _counts(trace)).eval()

    @torch.inference_mode()
    def counted() -> Tensor:
        return ideal(plain.run.taken(images))

    timings = timed({"ideal": counted, "adaptive": lambda: adaptive(images)}, len(images), asked.rounds, asked.least_ms)
    stages = "; ".join(f"{np.mean(stage):.0f} ({min(stage)} to {max(stage)})" for stage in trace.tokens)
    return Cell(row, f"b{len(images)}", _percent(timings, "adaptive"), least, "%", f"tokens behind the stages {stages}; {milliseconds(timings)}")


def _counts(trace: fv.Trace) -> list[int]:
    """Tokens of the mean image before each block."""
    return [round(float(np.mean(block))) for block in trace.block_tokens]


def _percent(timings, fast: str = "IRET") -> Spread:
    return ratio(timings, "ideal", fast, 100.0)


def _sized(images: Tensor, model: nn.Module) -> Tensor:
    """The images as another model takes them."""
    channels, *size = model.pretrained_cfg["input_size"]
    return nn.functional.interpolate(images, size=tuple(size)).expand(-1, channels, -1, -1).contiguous()
