"""Do calls with a deadline meet it? `python benchmarks/deadline.py [--calls 1000] [--model NAME ...] [--backend NAME ...] [--batch N ...]`.

Every block from the fourth on has an exit with random weights that is never sure, so that the deadline alone decides how far an image runs. The
budgets of a row lie between what the first exit and what the whole model need by the engine's own table; calls take them in turn. A call is late
where its time, from outside, is above its budget. The goal is 99 % in time, on an idle machine.
"""

import argparse
import itertools
import time

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

import foveate as fv
import foveate.backbones  # noqa: F401  registers foveate_nano
from foveate.machine import machine
from foveate.runtime.engine import Engine
from foveate.runtime.loading import synthetic_images
from foveate.runtime.staged_maker import StagedMaker

MODELS = ("foveate_nano", "deit_small_patch16_224")
SHARES = (0.02, 0.25, 0.5, 0.75, 1.0)
"""Budgets: so far from the first exit's cost to the whole model's."""
IMAGES, GOAL = 16, 99.0


def adapted(name: str) -> fv.AdaptiveModel:
    """The backbone with exits after blocks 4, 5, ..., the last."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    return fv.adapt(model, fv.Plan([fv.EarlyExit(after=tuple(range(4, len(model.blocks) + 1)), threshold=1.0)])).eval()


def budgets_of(engine: Engine, images: torch.Tensor) -> list[float]:
    """Milliseconds by the engine's table, which is measured here."""
    engine(images, budget_ms=1e9)
    costs = engine.run.costs if hasattr(engine.run, "costs") else engine.run.model.costs
    tokens = max(point.tokens for point in costs.latency[0])
    needed = [costs.latency_ms(segment, len(images), tokens) for segment in range(len(costs.ends))]
    return [needed[0] + share * (sum(needed) - needed[0]) for share in SHARES]


def calls(engine: Engine, images: list[torch.Tensor], budgets: list[float], count: int) -> list[tuple[float, float, float]]:
    """(budget, milliseconds, mean block of the exits) of each call."""
    found = []
    for budget, group in itertools.islice(zip(itertools.cycle(budgets), itertools.cycle(images)), count):
        start = time.perf_counter()
        _, trace = engine.traced(group, budget_ms=budget, strict=False)
        found.append((budget, 1000 * (time.perf_counter() - start), float(np.mean(trace.exits))))
    return found


def row(found: list[tuple[float, float, float]]) -> tuple[str, ...]:
    """Share in time, median and 99th percentile of time over budget, mean exit."""
    budget, spent, exits = map(np.asarray, zip(*found))
    ratio = spent / budget
    return f"{100 * (ratio <= 1).mean():.1f}", f"{np.quantile(ratio, 0.5):.2f}", f"{np.quantile(ratio, 0.99):.2f}", f"{exits.mean():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--backend", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    chosen = parser.parse_args()
    console, here = Console(width=140), machine()
    console.print(f"{here['cpu_model']}, {here['cpu_cores']} cores, load {here['load_average_1min']}, torch {here['versions']['torch']}")
    met = []
    for name, backend in itertools.product(chosen.model, chosen.backend):
        model = adapted(name)
        images = synthetic_images(model.card, IMAGES)
        engine = StagedMaker(model, images).engine(backend, chosen.precision)
        table = Table(title=f"{name}, exits after blocks 4 to {model.card.depth}, {engine.name}: {chosen.calls:,} calls a batch size", title_justify="left")
        for head in ("images a call", "budget (ms)", "in time (%)", "time / budget: median", "99th percentile", "mean exit"):
            table.add_column(head, justify="right")
        for batch in chosen.batch:
            groups = list(images.split(batch))[: IMAGES // batch]
            found = calls(engine, groups, budgets_of(engine, groups[0]), chosen.calls)
            for budget in dict.fromkeys(one[0] for one in found):
                table.add_row(str(batch), f"{budget:.2f}", *row([one for one in found if one[0] == budget]))
            table.add_row(str(batch), "all", *row(found), end_section=True)
            met.append(100 * np.mean([spent <= budget for budget, spent, _ in found]) >= GOAL)
        console.print(table)
    console.print(f"{sum(met)} of {len(met)} rows have {GOAL:g} % of their calls in time")


if __name__ == "__main__":
    main()
