"""Our own figures for the hardware numbers of ViTALiTy, by the names that results/published_hardware.csv gives them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from statistics import mean

import foveate as fv
from foveate import sim
from foveate.card import Card, stored_card
from foveate.ledger import Ledger
from foveate.sim.explain import explain
from foveate.simulated import Simulation

DEIT_T, DEIT_S, DEIT_B = (f"deit_{size}_patch16_224" for size in ("tiny", "small", "base"))
SEVEN = (DEIT_T, DEIT_S, DEIT_B, "mobilevit_xxs", "mobilevit_xs", "levit_128s", "levit_128")
ENERGY_MODELS = (DEIT_B, *SEVEN[3:])
MEASURED = (DEIT_T, "mobilevit_xs", "levit_128")
PLATFORMS = ("xeon-6230", "tx2", "2080ti")
DENSITIES, DENSITY = (0.1, 0.2, 0.3, 0.41, 0.5, 0.6, 0.8, 1), 0.41
SPARSE, THRESHOLD = "vitality(mode=sparse)", 0.02
Figures = Iterator[tuple[str, float | str]]
STEPS = (
    ("attn.k_mean.sum", "attn.k_mean", "attn.k_centred"), ("attn.context",), ("attn.k_sum", "attn.v_sum"),
    ("attn.denominator", "attn.denominator.add"), ("attn.numerator", "attn.numerator.add"), ("attn.ratio",),
)  # fmt: skip
SOFTMAX_STEPS = (("attn.qk",), ("attn.softmax",), ("attn.av",))


@cache
def simulated(model: str, plan: str, target: str) -> Simulation:
    return fv.simulate(model, plan, target)


def tx2() -> Figures:
    """Table II: measurements, so inputs; the shares are ours."""
    softmax, processing = [], []
    for model in MEASURED:
        for plan, steps in (("vitality", STEPS), ("dense", SOFTMAX_STEPS)):
            operations = [o for o in simulated(model, plan, "tx2-attention").operations if o.block]
            times = [sum(o.latency_ms for o in operations if o.origin.split(".", 2)[2] in names) for names in steps]
            for step, ms in [*enumerate(times, 1), ("overall", sum(times))]:
                yield from ((f"tx2/{model}/{plan}/{step}/ms", ms), (f"tx2/{model}/{plan}/{step}/share", 100 * ms / sum(times)))
            if plan == "dense":
                softmax.append(100 * times[1] / sum(times))
            else:
                processing.append(100 * sum(times[step - 1] for step in (1, 3, 4, 6)) / sum(times))
    yield from (("tx2/softmax_share", mean(softmax)), ("tx2/processing_share", mean(processing)))


def table3() -> Figures:
    """Sizes, areas and powers of both machine files, and their sums."""
    for name in ("vitality", "sanger"):
        machine, said = sim.load(name), explain(sim.load(name))
        bits = {"predictor": machine.figures.get("predictor_bits"), "pack-and-split": machine.figures.get("mask_bits")}
        sizes = {array.name: (array.rows, array.columns) for array in machine.arrays}
        sizes |= {processor.name: (64, processor.lanes // 64) for processor in machine.processors if processor.lanes}
        for part, (rows, columns) in sizes.items():
            yield f"table3/{name}/{part}/parameter", f"{rows}×{columns} {bits.get(part) or machine.precision_bits:g}-bit"
        for memory in machine.memories:
            yield f"table3/{name}/{memory.name}/parameter", f"{memory.size_kb / 4:g} KB×4"
        for part in (*machine.units, *machine.memories):
            if part.area_mm2:
                yield from ((f"table3/{name}/{part.name}/area", part.area_mm2), (f"table3/{name}/{part.name}/power", 1000 * part.rated_power_w))
        yield from ((f"table3/{name}/all/area", said["area_mm2"]), (f"table3/{name}/all/power", 1000 * said["rated_power_w"]))
        yield f"table3/{name}/all/parameter", f"{machine.figures['technology_nm']:g} nm"
    yield "vitality/clock", sim.load("vitality").clock_mhz


def as_table_1_counts(card: Card) -> Card:
    """One of MobileViT's four pixel groups, and values as narrow as keys: the workload behind two of Table V's rows."""
    blocks = [replace(b, value_dim=b.head_dim, groups=1, grid=(b.grid[0] // 2, b.grid[1] // 2) if b.groups > 1 else b.grid) for b in card.blocks]
    return replace(card, blocks=tuple(blocks))


def attention_energy(card: Card, target: str, subsampling: bool) -> dict[str, float]:
    """Microjoules between the projections and the output linears, by Table V's rows. subsampling: LeViT's subsampling attentions count."""
    kept = {o.origin for o in fv.count(card, "vitality", include="attention").operations if subsampling or card.block(o.block).queries is None}
    rows = {"SA-General": "Systolic Array", "SA-Diag": "Systolic Array", "SRAM": "Data Access"}
    sums = dict.fromkeys(("Data Access", "Other Processors", "Systolic Array"), 0.0)
    for cost in fv.simulate(card, "vitality", target).costs:
        if cost.origin in kept and cost.energy_mj:
            sums[rows.get(cost.unit, "Other Processors")] += 1000 * cost.energy_mj
    return sums


def table5() -> Figures:
    """Energies of the Taylor attention with both dataflows; the array's row is that of the true models."""
    for target in ("vitality", "vitality-gs"):
        for model in ENERGY_MODELS:
            card = stored_card(model)
            rows = attention_energy(as_table_1_counts(card), target, False)
            rows["Systolic Array"] = attention_energy(card, target, True)["Systolic Array"]
            yield from ((f"table5/{target}/{model}/{row}", energy) for row, energy in (rows | {"Overall": sum(rows.values())}).items())


def table6() -> Figures:
    """Which processors each attention runs on; accumulators count where they do more than normalise."""
    words = {"exponentials": "Exp.", "accumulators": "Acc.", "dividers": "Div.", "adders": "Add."}
    for method in ("linformer", "efficient", "performer", "lineartransformer", "vitality"):
        used = {}
        for cost in simulated(DEIT_T, method, "vitality-extended").costs:
            summing = cost.unit != "accumulators" or cost.origin.endswith(("k_mean.sum", "v_sum"))
            if cost.unit in words and ".attn." in cost.origin and summing:
                used[cost.unit] = words[cost.unit]
        yield f"table6/{method}", " ".join(used[unit] for unit in words if unit in used)


def parts(found: Simulation) -> dict[str, tuple[float, float]]:
    """(milliseconds, millijoules) of the core attention and of the whole model."""
    attention: Ledger = found.only("attention")
    return {"attention": (attention.latency_ms, attention.energy_mj or 0), "whole": (found.latency_ms, found.energy_mj or 0)}


def gains(model: str, plan: str, target: str, ours: str) -> dict[tuple[str, str], float]:
    """How much faster and thriftier ViTALiTy on `ours` is than `plan` on `target`."""
    theirs, own = parts(simulated(model, plan, target)), parts(simulated(model, "vitality", ours))
    return {(figure, part): theirs[part][i] / own[part][i] for part in own for i, figure in enumerate(("fig11", "fig12"))}


def speeds() -> Figures:
    """Figs. 11 and 12: means over seven models, against rooflines at equal peaks and against Sanger."""
    pairs = [(target, "dense", target, f"vitality@peak={target}") for target in PLATFORMS]
    for name, plan, target, ours in [*pairs, ("sanger", SPARSE, f"sanger@density={DENSITY}", "vitality")]:
        each = [gains(model, plan, target, ours) for model in SEVEN]
        yield from ((f"{figure}/{name}/{part}", mean(one[figure, part] for one in each)) for figure, part in each[0])


def salo() -> Figures:
    """Attention against SALO, at its window."""
    for name, model in (("DeiT-Tiny", DEIT_T), ("DeiT-Small", DEIT_S)):
        yield f"salo/{name}", simulated(model, "dense", "salo").latency_ms / parts(simulated(model, "vitality", "vitality"))["attention"][0]
