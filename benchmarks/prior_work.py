"""Section 4.3 of PIVOT on this machine: `python benchmarks/prior_work.py`.

DeiT-S with random weights, dense and under four plans: tokens pruned as HeatViT does, 90 % sparse attention as ViTCoD's, PIVOT's effort 6,
and PIVOT's cascade of efforts 6 and 12 in which 20 % of the images go on (PVDS-50). Latencies are compared with the dense model in the same
backend, precision and rounds; in torch the overhead is split off (Fig. 7). Accuracy needs ImageNet and is not looked at.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import foveate as fv
from foveate.machine import machine
from foveate.measure.breakdown import GATE, Breakdown, breakdown, metered
from foveate.measure.clock import HELPS, Timing, interleave
from foveate.nn.gates import entropy

DENSE, HEATVIT, VITCOD, EFFORT, CASCADE = "dense", "HeatViT 40/74/87 %", "ViTCoD 90 %", "PIVOT effort 6", "PIVOT 6 and 12, F_H 0.2"
MODEL = "deit_small_patch16_224"
GROUP, GROUPS = 5, 16
"""One image of five goes on: a sample has five calls, and the harder images stand everywhere in the batches."""
PLANS = {HEATVIT: "heatvit-deit-small", VITCOD: "vitcod(sparsity=0.9)", EFFORT: "pivot(skip=[2,4,6,8,10,12])"}  # which six costs the same


@dataclass(frozen=True)
class Found:
    """What one plan took in one setting. gmacs: of the mean image, by the ledger. split: only in torch."""

    plan: str
    backend: str
    precision: str
    gmacs: float
    timing: Timing
    split: Breakdown | None = None


def gmacs(plan: str) -> float:
    """Giga multiply-accumulates of the mean image; the cascade's low effort runs for all, its high one for a fifth."""
    macs = lambda text: fv.count(MODEL, text).macs / 1e9
    return macs(PLANS[EFFORT]) + macs("dense") / GROUP if plan == CASCADE else macs(PLANS.get(plan, "dense"))


def models(device: str = "cpu") -> dict[str, nn.Module]:
    """The dense model, the three plans, and the cascade whose gate is not set yet."""
    torch.manual_seed(0)
    base = timm.create_model(MODEL).eval()
    with torch.no_grad():
        base.head.weight.mul_(40)  # as it starts, all images are about equally unsure, and rounding would decide which go on
    made = {DENSE: fv.adapt(base, fv.Plan())} | {name: fv.adapt(base, fv.Plan.parse(plan)) for name, plan in PLANS.items()}
    made[VITCOD].calibrate(made[DENSE], pictures(8, seed=1))
    return {name: model.to(device) for name, model in (made | {CASCADE: fv.Cascade([made[EFFORT], made[DENSE]], fv.Entropy(0.5))}).items()}


def pictures(count: int, seed: int = 0) -> Tensor:
    """Normalised noise at several scales, so that images differ."""
    dice = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 7, 7, generator=dice) * torch.linspace(0.2, 3, count)[:, None, None, None]
    return nn.functional.interpolate(coarse, size=224, mode="bicubic") + torch.randn(count, 3, 224, 224, generator=dice) * 0.3


def gated(cascade: fv.Cascade, logits: Callable[[Tensor], Tensor], images: Tensor) -> tuple[fv.Cascade, Tensor]:
    """The cascade that passes a fifth of these images on by their low effort's `logits`, and the images, every fifth of them a hard one."""
    unsure = torch.cat([entropy(logits(group)) for group in images.split(GROUP)])
    easy, hard = unsure.argsort().split([len(images) - len(images) // GROUP, len(images) // GROUP])
    bound = float(unsure[easy[-1]] + unsure[hard[0]]) / 2
    images = images[torch.cat([easy.view(-1, GROUP - 1), hard[:, None]], 1).flatten()]
    going = torch.cat([entropy(logits(one)) > bound for one in images.split(1)]).float().mean()
    print(f"{100 * going:.1f} % of {len(images)} images lie above the gate's threshold {bound:.3f}")
    return cascade.gated([fv.Entropy(bound)]), images


def groups(images: Tensor, batch: int) -> list[tuple[Tensor, ...]]:
    """Samples of five batches."""
    return [tuple(part.split(batch)) for part in images.split(GROUP * batch)]


def turning(run: Callable[..., object], samples: list[tuple[Tensor, ...]]) -> Callable[[], object]:
    """A call that takes the next sample each time."""
    state = {"at": 0}

    def call() -> object:
        state["at"] += 1
        return run(*samples[state["at"] % len(samples)])

    return call


def in_torch(made: dict[str, nn.Module], precision: str, batch: int, repetitions: int, warmup: int) -> list[Found]:
    low = fv.runtime.load_engine(made[EFFORT], "torch", precision)
    cascade, images = gated(made[CASCADE], low, pictures(GROUP * max(GROUPS, batch)))
    wait = torch.cuda.synchronize if next(cascade.parameters()).is_cuda else None
    runners = {name: turning(metered(model, precision, wait), groups(images, batch)) for name, model in (made | {CASCADE: cascade}).items()}
    split = breakdown(runners, repetitions, warmup, images=GROUP * batch, synchronize=wait)
    return [Found(name, "torch", precision, gmacs(name), one.timing, one) for name, one in split.items()]


def in_openvino(made: dict[str, nn.Module], precision: str, batch: int, repetitions: int, warmup: int) -> list[Found]:
    """Engines whose logits agree; the others are named and left out."""
    images, engines = pictures(GROUP * max(GROUPS, batch)), {}
    for name, model in made.items():
        try:
            if name == CASCADE:
                model, images = gated(model, engines[EFFORT], images)
            engines[name] = fv.runtime.load_engine(model, "openvino", precision, images[:batch], tolerance=0.5)  # random weights decide narrowly
        except fv.FoveateError as error:
            print(f"left out in openvino {precision}: {name}: {error.given}")
    runners = {name: turning(_each(engine), groups(images, batch)) for name, engine in engines.items()}
    timings = interleave(runners, repetitions, warmup, images=GROUP * batch)
    return [Found(name, "openvino", precision, gmacs(name), timing) for name, timing in timings.items()]


def _each(engine: fv.runtime.Engine) -> Callable[..., None]:
    def run(*batches: Tensor) -> None:
        for images in batches:
            engine(images)

    return run


def claims(found: Iterable[Found]) -> list[tuple[str, str]]:
    """The paper's claims about general-purpose processors, and what was found here."""
    found = list(found)
    of = lambda plan: [one for one in found if one.plan == plan]
    speedups = lambda plan: [one.timing.speedup.median for one in of(plan)]
    overheads = [one.split.overhead_percent.median for one in of(CASCADE) if one.split]
    gates = [one.split.percent(GATE).median for one in of(CASCADE) if one.split]
    return [
        ("HeatViT does not help", _said([one.timing.verdict != HELPS for one in of(HEATVIT)], speedups(HEATVIT), "times as fast as dense")),
        ("ViTCoD does not help", _said([one.timing.verdict != HELPS for one in of(VITCOD)], speedups(VITCOD), "times as fast as dense")),
        ("PIVOT (PVDS-50) is 1.2 to 1.5 times as fast", _said([1.2 <= s <= 1.5 for s in speedups(CASCADE)], speedups(CASCADE), "times as fast as dense")),
        ("PIVOT's overhead is 6 %", _said([o < 6.5 for o in overheads], overheads, "% of the time")),
        ("its entropy takes < 0.05 %", _said([g < 0.05 for g in gates], gates, "% of the time", 3)),
    ]


def _said(holds: list[bool], figures: list[float], unit: str, digits: int = 2) -> str:
    if not holds:
        return "not measured"
    word = "confirmed" if all(holds) else "refuted" if not any(holds) else f"holds in {sum(holds)} of {len(holds)} settings"
    return f"{word} here: {min(figures):.{digits}f} to {max(figures):.{digits}f} {unit}"


def table(found: Iterable[Found]) -> Table:
    columns = ("backend", "batch", "plan", "GMACs", "ms an image", "times as fast", "", "overhead (%)", "of it (%)")
    made = Table(*columns, title="DeiT-S; medians and quartiles of rounds")
    spread = lambda values, digits: f"{values[0]:.{digits}f} ({values[1]:.{digits}f} to {values[2]:.{digits}f})"
    for one in found:
        parts = ", ".join(f"{part} {one.split.percent(part).median:.2g}" for part in one.split.parts_ms) if one.split else ""
        made.add_row(
            f"{one.backend} {one.precision}", str(one.timing.batch // GROUP), one.plan, f"{one.gmacs:.3f}",
            spread(one.timing.latency_ms, 1), spread(one.timing.speedup, 2),
            one.timing.verdict if one.plan != DENSE else "baseline", spread(one.split.overhead_percent, 2) if one.split else "", parts)  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", nargs="+", default=["torch", "openvino"], choices=["torch", "openvino"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="of torch; openvino runs bf16 only")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of torch")
    given = parser.parse_args()
    made, found, shown = models(given.device), [], Console(width=190)
    for batch in given.batch:
        if "torch" in given.backend:
            found += [one for precision in given.precision for one in in_torch(made, precision, batch, given.repetitions, given.warmup)]
        if given.device == "cpu" and "openvino" in given.backend and "openvino" in fv.runtime.installed_backends():
            found += in_openvino(made, "bf16", batch, given.repetitions, given.warmup)
    shown.print(table(found))
    for claim, verdict in claims(found):
        shown.print(f"PIVOT, section 4.3: {claim}: {verdict}")
    times, again = gmacs(CASCADE) / gmacs(DENSE), 100 / GROUP * gmacs(EFFORT) / gmacs(CASCADE)
    shown.print(f"By its MACs the cascade takes {times:.3f} times what the dense model takes, {again:.1f} % of it recomputation.")
    shown.print(machine())


if __name__ == "__main__":
    main()
