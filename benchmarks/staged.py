"""What do exits save when they are taken? `python benchmarks/staged.py [--model NAME] [--rounds N] [--batch N ...] [--precision NAME]`.

Images leave where they are told to, so that shares are exact; weights are random, which does not matter for time. The model without exits runs in
one graph (in torch: as a whole) in the same rounds. The ledger's prediction is the ratio of MACs. The goal is 90 % of it at batch 16; what exits
cost where nobody leaves is reported.
"""

import argparse

import timm
import torch
from rich.console import Console
from rich.table import Table

import foveate as fv
from foveate.machine import machine
from foveate.measure import Timing, interleave
from foveate.runtime.engine import Engine
from foveate.runtime.loading import synthetic_images
from foveate.runtime.maker import Maker
from foveate.runtime.staged_maker import StagedMaker

EXITS = {"two exits": (4, 8), "nine exits": (4, 5, 6, 7, 8, 9, 10, 11, 12)}
SHARES = {"nobody leaves": {12: 16}, "10 of 16 after block 4": {4: 10, 12: 6}, "4 after 4, 4 after 8": {4: 4, 8: 4, 12: 8}, "12 after 8": {8: 12, 12: 4}}
GOAL = 90.0


def leaving(shares: dict[int, int], batch: int) -> list[int]:
    """The exit of each image of a batch, `shares` counted in sixteenths; who leaves lies between who stays."""
    exits = [block for block, count in shares.items() for _ in range(count * batch // 16)]
    return [exits[(image * 7) % len(exits)] for image in range(len(exits))]


def runner(engine: Engine, images: torch.Tensor, exits: list[int]):
    """A call in which images leave where `exits` says."""
    if engine.backend == "torch":
        model, taken = engine.run.model, engine.run.taken(images)
        decisions = fv.Trace(images=len(images), exits=exits)

        @torch.inference_mode()
        def run() -> None:
            model.traced(taken, decisions)

        return run
    return lambda: engine.run.traced(images, decisions=exits)


def measure(name: str, after: tuple[int, ...], backend: str, precision: str, batch: int, rounds: int) -> tuple[dict[str, Timing], fv.AdaptiveModel]:
    """Times a batch under every kind of leaving, and without exits."""
    torch.manual_seed(0)
    base = timm.create_model(name).eval()
    model, dense = fv.adapt(base, fv.Plan([fv.EarlyExit(after=after, threshold=1.0)])).eval(), fv.adapt(base, fv.Plan()).eval()
    images = synthetic_images(model.card, batch)
    whole, staged = Maker(dense, images).engine(backend, precision), StagedMaker(model, images).engine(backend, precision)
    calls = {"without exits": lambda: whole(images)}
    calls |= {kind: runner(staged, images, leaving(shares, batch)) for kind, shares in SHARES.items() if batch == 16 or len(shares) == 1}
    return interleave(calls, rounds, warmup=3, images=batch, baseline="without exits"), model


def predicted(model: fv.AdaptiveModel, shares: dict[int, int]) -> float:
    """How many times fewer MACs the mean image costs than one without exits, by the ledger."""
    exits = [shares.get(block, 0) / 16 for block in model.exit_blocks]
    return fv.count(model.card).macs / fv.count(model, exits=exits).macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--backend", nargs="+", default=["openvino", "torch"])
    parser.add_argument("--precision", default="bf16", help="fp32 or bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], choices=[1, 16])
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    console, here = Console(width=140), machine()
    console.print(f"{here['cpu_model']}, {here['cpu_cores']} cores, load {here['load_average_1min']}, torch {here['versions']['torch']}")
    for backend in chosen.backend:
        table = Table(title=f"{chosen.model}, {backend} {chosen.precision}", title_justify="left")
        for head in ("exits", "batch", "images", "ms an image", "times as fast: by MACs", "measured (quartiles)", "measured / MACs (%)", "goal"):
            table.add_column(head, justify="left" if head in ("exits", "images", "goal") else "right")
        for kind, after in EXITS.items():
            for batch in chosen.batch:
                timings, model = measure(chosen.model, after, backend, chosen.precision, batch, chosen.rounds)
                for leave, shares in SHARES.items():
                    if leave in timings:
                        speedup, bound = timings[leave].speedup, predicted(model, shares)
                        share = 100 * speedup.median / bound
                        goal = "" if batch == 1 or len(shares) == 1 else "reached" if share >= GOAL else "falls short"
                        table.add_row(kind, str(batch), leave, f"{timings[leave].latency_ms.median:.2f}", f"{bound:.3f}",
                                      f"{speedup.median:.3f} ({speedup.low:.3f} to {speedup.high:.3f})", f"{share:.1f}", goal)
        console.print(table)
        console.print(f"Nobody leaves: what the exits cost. The goal is {GOAL:g} % of the ledger's prediction at batch 16.")


if __name__ == "__main__":
    main()
