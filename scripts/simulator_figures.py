"""Our own figures for the hardware numbers of PIVOT and SPViT, by the names that results/published_hardware.csv gives them."""

from collections.abc import Iterator
from dataclasses import replace

import foveate as fv
from foveate import sim
from foveate.card import Card, stored_card
from foveate.ledger import Operation
from foveate.simulated import Simulation
from foveate.simulation import charged, machine_of
from foveate.workload import BlockWork, block_operations

DEIT_S, LVVIT = "deit_small_patch16_224", "lvvit_s"
Figures = Iterator[tuple[str, float | str]]


# PIVOT


def wider(card: Card, ratio: int) -> Card:
    """The backbone with another MLP ratio."""
    blocks = [replace(b, hidden=ratio * b.dim, mlp=(replace(b.mlp[0], outputs=ratio * b.dim), replace(b.mlp[1], inputs=ratio * b.dim))) for b in card.blocks]
    return replace(card, blocks=tuple(blocks))


def effort(card: Card, active: int) -> fv.Plan:
    """A plan with so many attentions: those of the first blocks."""
    return fv.Plan([fv.PIVOT(skip=tuple(range(active + 1, card.depth + 1)))]) if active < card.depth else fv.Plan()


def two_efforts(card: Card, low: int, high_share: float) -> Simulation:
    """A cascade of `low` attentions and of all; its energy-delay product is the sum over passes."""
    plan = fv.Plan.cascade([effort(card, low), effort(card, card.depth)], gate=fv.Entropy(0.3), fractions=(1 - high_share, high_share))
    return fv.simulate(card, plan, "zcu102")


def pivot() -> Figures:
    """Tables 2 and 3, Figs. 1b, 6a and 6b, and the entropy of section 3.4."""
    deit, lvvit, lvvit4 = stored_card(DEIT_S), stored_card(LVVIT), wider(stored_card(LVVIT), 4)
    base = {name: fv.simulate(card, None, "zcu102") for name, card in (("deit", deit), ("lvvit", lvvit), ("lvvit4", lvvit4))}
    cases = {
        "pvds50": (two_efforts(deit, 6, 0.2), "deit"), "pvds35": (two_efforts(deit, 3, 0.2), "deit"), "pvls50": (two_efforts(lvvit4, 4, 0.2), "lvvit4"),
        "pvls35": (two_efforts(lvvit, 4, 0.1), "lvvit4"), "fig6ds": (two_efforts(deit, 3, 0.2), "deit"), "fig6ls": (two_efforts(lvvit, 4, 0.2), "lvvit"),
    }  # fmt: skip
    cases |= {name: (found, name) for name, found in base.items()}
    for name, (found, of) in cases.items():
        edp = found.edp if name == "pvls35" else found.edp_of_passes
        values = {
            "energy_j": found.energy_mj / 1000, "delay_ms": found.latency_ms, "power_w": machine_of("zcu102").power_w, "edp": edp,
            "fps_per_w": found.fps_per_w, "energy_gain": base[of].energy_mj / found.energy_mj, "delay_gain": base[of].latency_ms / found.latency_ms,
            "edp_gain": base[of].edp / edp, "fps_gain": found.fps_per_w / base[of].fps_per_w, "edp_gain_printed_base": 50.8 / edp,
        } | shares(found, base[of])  # fmt: skip
        yield from ((f"pivot/{name}/{figure}", value) for figure, value in values.items())
    entropy = charged(fv.Ledger((Operation("entropy", "gate.entropy", m=1, n=1000),)), machine_of("zcu102")).latency_ms
    yield from (("pivot/entropy/ms", entropy), ("pivot/entropy/share", 100 * entropy / base["deit"].latency_ms))


def shares(found: Simulation, base: Simulation) -> dict[str, float]:
    """Percent of the delay, and what each part gains over the baseline."""
    part = lambda one, *groups: 100 * sum(one.shares()[group] for group in groups)
    macs, units = ("qkv", "qk", "av", "proj"), [one.by_unit() for one in (base, found)]
    return {
        "softmax": part(found, "softmax"), "attention_macs": part(found, *macs), "attention": part(found, "softmax", *macs),
        "maps": part(found, "qk", "av"), "more_mlp": part(found, "mlp") - part(base, "mlp"),
        "ps_gain": units[0]["ps"] / units[1]["ps"], "array_gain": base.latency_ms / found.latency_ms,
    }  # fmt: skip


def board() -> Figures:
    """What PIVOT's machine file says of the board (Table 1, section 4.1)."""
    machine = sim.load("zcu102")
    array, sizes = machine.arrays[0], {memory.name: memory.size_kb for memory in machine.memories}
    texts = {
        "board": "Xilinx ZCU102" if "Xilinx ZCU102" in machine.about else "", "gb": f"{sizes['GB']:g}KB",
        "mems": ", ".join(f"{8 * sizes[name]:g}Kb" for name in ("IPMEM", "WTMEM", "OPMEM")), "array": f"{array.rows}×{array.columns}",
        "clock": f"{machine.clock_mhz:g}MHz", "dataflow": array.dataflow.replace("-", " ").title(), "bits": machine.precision_bits,
    }  # fmt: skip
    yield from ((f"zcu102/{name}", value) for name, value in (texts | machine.figures).items())


# SPViT


def spvit() -> Figures:
    """Tables 2 and 4 on the board."""
    for size in ("tiny", "small"):
        card = stored_card(f"deit_{size}_patch16_224")
        for step in range(6):
            block = BlockWork(1, card.blocks[0], prefix=1, patches=round(197 * (1 - step / 10)) - 1)
            yield f"spvit/{size}/{step / 10}", charged(fv.Ledger(tuple(block_operations(block, card.blocks[1]))), machine_of("zcu102-16bit")).latency_ms
        dense, pruned = (fv.simulate(card, plan, "zcu102-16bit").latency_ms for plan in ("dense", f"spvit-deit-{size}"))
        yield from ((f"spvit/{size}/dense", dense), (f"spvit/{size}/spvit", pruned))
        yield from ((f"spvit/{size}/speedup", dense / pruned), (f"spvit/{size}/reduction", 100 * (1 - pruned / dense)))
    yield "spvit/bits", sim.load("zcu102-16bit").precision_bits


def phone() -> Figures:
    """Table 4 on the phone: what its table of measurements says of our plans."""
    for size, keep in (("tiny", "spvit-deit-tiny"), ("small", "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])")):
        dense, pruned = (fv.simulate(f"deit_{size}_patch16_224", plan, "galaxy-s20").latency_ms for plan in ("dense", keep))
        yield from ((f"s20/{size}/dense", dense), (f"s20/{size}/spvit", pruned), (f"s20/{size}/reduction", 100 * (1 - pruned / dense)))
    yield "s20/selector", sim.load("galaxy-s20").figures["selector_latency_ms"]
