"""Is a cascade faster than its high effort alone wherever the ledger says so? `python benchmarks/cascade.py [--case N] [--rounds N]`.

Batches of 16 images of which 0, 1, 2, ... go on to the high effort: the threshold is put between the measured difficulties of the
low effort, so that exactly so many do. All of a case run in turn, round by round, with the high effort alone; weights are random,
which does not matter for time. Break-even is F_H* = 1 - C_L / C_H in MACs, and 1 - t_L / t_H in measured time of either effort alone.
"""

import argparse

import timm
import torch
from rich.console import Console
from rich.table import Table

import foveate as fv
from foveate.cascade import Cascade
from foveate.efforts import break_even
from foveate.gates import Gate
from foveate.machine import machine
from foveate.measure import interleave
from foveate.nn.gates import difficulty
from foveate.runtime.cascade import CascadeMaker, Regrouped
from foveate.runtime.loading import synthetic_images
from foveate.runtime.maker import Maker

BATCH = 16
CASES = {
    "PIVOT, effort 3 before 12": ("deit_tiny_patch16_224", "pivot(skip=[4,5,6,7,8,9,10,11,12])", "deit_tiny_patch16_224"),
    "SPViT before dense": ("deit_tiny_patch16_224", "spvit(after=[3,6,9],keep=[0.5,0.25,0.125])", "deit_tiny_patch16_224"),
    "DeiT-T before DeiT-S": ("deit_tiny_patch16_224", "dense", "deit_small_patch16_224"),
}


def efforts(case: str) -> tuple[fv.AdaptiveModel, fv.AdaptiveModel]:
    """The low and the high effort with random weights and a head that spreads its answers."""
    low, plan, high = CASES[case]
    torch.manual_seed(0)
    models = [fv.adapt(timm.create_model(low).eval(), fv.Plan.parse(plan)), fv.adapt(timm.create_model(high).eval(), fv.Plan())]
    with torch.no_grad():
        for model in models:
            model.head.weight.mul_(200)
    return tuple(model.eval() for model in models)


def gate_for(going: int, hardness: torch.Tensor) -> Gate:
    """The entropy gate that `going` of the images with these difficulties pass."""
    ordered = hardness.sort().values
    if going == len(ordered):
        return fv.Entropy(max(0.0, float(ordered[0]) - 1e-4))
    stays = ordered[len(ordered) - going - 1]
    return fv.Entropy(1.0) if going == 0 else fv.Entropy(float(stays + ordered[len(ordered) - going]) / 2)


def measure(case: str, backend: str, precision: str, rounds: int, console: Console) -> None:
    """Times one case and prints its table."""
    low, high = efforts(case)
    images = synthetic_images(high.card, BATCH)
    whole = CascadeMaker(Cascade([low, high], fv.Entropy(0.5)), images).engine(backend, precision)
    cheap = whole.run.engines[0]
    alone = Maker(high, images).engine(backend, precision)
    hardness = difficulty(fv.Entropy(0.5), cheap(images))
    even = break_even(fv.count(low).macs, fv.count(high).macs)
    shares = sorted({0, 1, 2, 4, 8, 12, 16, max(1, int(even * BATCH)), min(BATCH, int(even * BATCH) + 2)})
    runs = {going: Regrouped(whole.run.engines, [gate_for(going, hardness)]) for going in shares}
    for going, run in runs.items():
        run(images)
        assert run.ran == [BATCH, going], f"{run.ran} instead of {going} go on"
    calls = {"high": lambda: alone(images), "low": lambda: cheap(images)} | {going: (lambda run=run: run(images)) for going, run in runs.items()}
    timings = interleave(calls, rounds, warmup=2, images=BATCH, baseline="high")
    seconds = {name: timing.latency_ms.median for name, timing in timings.items()}
    by_time = break_even(seconds["low"], seconds["high"])
    title = f"{case}, {backend} {precision}: break-even F_H* = {100 * even:.1f} % by MACs, {100 * by_time:.1f} % by time"
    table = Table(title=title, title_justify="left")
    for head in ("go on", "F_H (%)", "ms an image", "high effort / cascade: MACs", "measured (quartiles)", "MACs say", "measured"):
        table.add_column(head, justify="right")
    for going in shares:
        share, speedup = going / BATCH, timings[going].speedup
        measured = f"{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f})"
        figures = (f"{100 * share:.1f}", f"{seconds[going]:.2f}", f"{1 / (1 - even + share):.2f}", measured)
        table.add_row(f"{going} of {BATCH}", *figures, "faster" if share < even else "not", timings[going].verdict)
    console.print(table)
    console.print(f"high effort alone {seconds['high']:.2f} ms an image, low effort alone {seconds['low']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="only this one: " + ", ".join(f"{n} {c}" for n, c in enumerate(CASES, 1)))
    parser.add_argument("--backend", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    console, found = Console(width=140), machine()
    console.print(f"{found['cpu_model']}, {found['cpu_cores']} cores, load {found['load_average_1min']}, torch {found['versions']['torch']}")
    for number, case in enumerate(CASES, 1):
        for backend in chosen.backend if chosen.case in (None, number) else ():
            measure(case, backend, chosen.precision, chosen.rounds, console)


if __name__ == "__main__":
    main()
