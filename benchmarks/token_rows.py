"""Rows of benchmarks/cpu.py: DeiT-S with fewer tokens over dense DeiT-S, over timm eager, over ToMe; Taylor attention over softmax."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import timm
import torch
from cells import Cell, milliseconds, ratio, timed
from torch import Tensor, nn

import foveate as fv
from foveate.measure.race import Setting, race
from foveate.runtime import Engine, load_engine
from foveate.runtime.loading import synthetic_images

PLAN = "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])"
TOME, EVIT = "tome(r=13)", "evit(after=[4,7,10],keep=[0.611,0.373,0.228])"
"""At about the MACs of PLAN."""
KEPT = 4
ANY = 10.0
"""Random weights decide narrowly: engines are made for their speed, and what their logits differ by is told."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. model, iret: names in timm. batches: images a call."""

    model: str = "deit_small_patch16_224"
    iret: str = "iret_small"
    rounds: int = 15
    batches: tuple[int, ...] = (1, 16)
    tokens: tuple[int, ...] = (577, 1025)
    compiled: bool = True
    least_ms: float = 100.0


def backbone(name: str) -> nn.Module:
    """A timm model with random weights, the same at every call."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def engine(model: nn.Module, plan: str, backend: str, precision: str, images: Tensor) -> Engine:
    """An engine of `model` under `plan` whose logits may differ as they like."""
    return load_engine(fv.adapt(model, fv.Plan.parse(plan)), backend, precision, images, tolerance=ANY)


@functools.lru_cache(maxsize=KEPT)
def prepared(name: str, plan: str, precision: str, count: int) -> Engine:
    """An engine of `backbone(name)` in OpenVINO, made once for all rows that take part with it. count: images to make it with."""
    base = backbone(name)
    return engine(base, plan, "openvino", precision, synthetic_images(fv.adapt(base, fv.Plan()).card, count))


def each_in(precision: str, row: str, least: dict[int, float], others: dict[str, str] | None = None):
    """A function that times the plan against dense in OpenVINO in `precision`. least: what is asked for by batch size. others: reported plans by name."""

    def measure(asked: Asked) -> Iterator[Cell]:
        base = backbone(asked.model)
        plans = {"dense": "dense", "plan": PLAN} | (others or {})
        images = synthetic_images(fv.adapt(base, fv.Plan()).card, max(asked.batches))
        engines = {}
        for name, plan in plans.items():
            try:
                engines[name] = prepared(asked.model, plan, precision, len(images))
            except fv.FoveateError as error:
                if name not in (others or {}):
                    raise
                yield Cell(f"over {name}, OpenVINO {precision}", "", error=error.given)
        gmacs = {name: fv.count(base, plan).macs / 1e9 for name, plan in plans.items()}
        for batch in asked.batches:
            timings = timed(calls(engines, images[:batch]), batch, asked.rounds, asked.least_ms)
            said = f"{asked.model} at {gmacs['plan']:.2f} of {gmacs['dense']:.2f} GMAC; {milliseconds(timings)}; plan: {engines['plan'].agreement}"
            yield Cell(row, f"b{batch}", ratio(timings, "dense", "plan"), least.get(batch), note=said)
            for name, plan in {name: plan for name, plan in (others or {}).items() if name in engines}.items():
                wanted = {1: 1.30, 16: 1.20}.get(batch) if (plan, precision) == (TOME, "int8") else None
                yield Cell(f"over {name}, OpenVINO {precision}", f"b{batch}", ratio(timings, name, "plan"), wanted, note=f"{plan}, {gmacs[name]:.2f} GMAC")

    return measure


def over_eager(asked: Asked) -> Iterator[Cell]:
    """The plan in OpenVINO int8 over timm's own model in eager float32, what most users run today."""
    base = backbone(asked.model)
    images = synthetic_images(fv.adapt(base, fv.Plan()).card, max(asked.batches))
    fast = prepared(asked.model, PLAN, "int8", len(images))

    @torch.inference_mode()
    def eager(given: Tensor) -> Tensor:
        return base(given)

    for batch in asked.batches:
        runs = calls({"timm eager fp32": eager, "plan": fast}, images[:batch])
        timings = timed(runs, batch, asked.rounds, asked.least_ms)
        yield Cell("over timm eager fp32, in OpenVINO int8", f"b{batch}", ratio(timings, "timm eager fp32", "plan"), {1: 7.0, 16: 13.0}.get(batch),
                   note=milliseconds(timings))


def taylor(asked: Asked) -> Iterator[Cell]:
    """Taylor attention over the best of all softmax versions, batch 1."""
    for tokens, least in zip(asked.tokens, (6.0, 13.0)):
        found = race(Setting(tokens, "bf16", compiled=asked.compiled), asked.rounds, 2)
        times = ", ".join(f"{name} {timing.latency_ms.median:.3g}" for name, timing in found.timings.items())
        left = "".join(f"; left out {name}: {why}" for name, why in found.left_out.items())
        yield Cell("Taylor over the best softmax, bf16", f"n={tokens}", found.best.speedup, least,
                   note=f"{found.best.name} over {found.baseline.name}; {times} ms{left}")


def calls(runs: dict[str, Callable[[Tensor], object]], images: Tensor) -> dict[str, Callable[[], object]]:
    """Each of `runs` as a call without arguments."""
    return {name: lambda run=run: run(images) for name, run in runs.items()}


in_int8 = each_in("int8", "over dense, OpenVINO int8", {1: 1.45, 16: 1.65}, {"ToMe": TOME, "EViT": EVIT})
in_bf16 = each_in("bf16", "over dense, OpenVINO bf16", {1: 1.55, 16: 1.66}, {"ToMe": TOME, "EViT": EVIT})
