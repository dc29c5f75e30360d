"""Simulation: what `foveate.simulate` returns, a Ledger with the milliseconds and millijoules of one machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from foveate import sim
from foveate.ledger import Ledger

_FIGURES = ("cycles", "latency_ms", "energy_mj", "stall_cycles")


@dataclass(frozen=True)
class Simulation(Ledger):
    """A Ledger with the milliseconds and millijoules of one machine, all for one image.

    target: the machine's name. batch: images that ran together. costs: the same figures by operation and unit, in running order.
    remarks: what a reader must know, such as what the machine's model charges nothing for. passes: of a cascade, each effort's
    Simulation with the share of images that run it.
    """

    target: str = ""
    batch: int = 1
    costs: tuple[sim.Cost, ...] = ()
    remarks: tuple[str, ...] = ()
    passes: tuple[tuple["Simulation", float], ...] = ()

    @property
    def edp(self) -> float | None:
        """Energy-delay product of the mean image in J ms: energy times delay, as PIVOT's Tables 2 and 3 print it for dense models."""
        return None if self.energy_mj is None else self.energy_mj / 1000 * self.latency_ms

    @property
    def edp_of_passes(self) -> float | None:
        """The other definition, in J ms: each pass's own energy times its own delay, summed over passes with the shares that run them.

        PIVOT prints this one for its cascades: 7.92 W (D_L^2 + F_H D_H^2). Without a cascade both are the same.
        """
        if not self.passes or self.energy_mj is None:
            return self.edp
        return sum(share * one.edp for one, share in self.passes)

    @property
    def images_per_s(self) -> float:
        """Images a second when batches follow one another."""
        return 1000 / self.latency_ms

    @property
    def fps_per_w(self) -> float | None:
        """Images a second for each watt, which is images for each joule."""
        return 1000 / self.energy_mj if self.energy_mj else None

    def by_unit(self, figure: str = "latency_ms") -> dict[str, float]:
        """`figure` ("latency_ms", "energy_mj", "cycles" or "stall_cycles") summed over each unit of the machine."""
        sums: dict[str, float] = {}
        for cost in self.costs:
            sums[cost.unit] = sums.get(cost.unit, 0) + (getattr(cost, figure) or 0)
        return sums

    def by_module(self, figure: str = "latency_ms") -> dict[str, float]:
        """`figure` summed over "attn" and "mlp" of all blocks, norms with the module they stand before, and every other group."""
        sums: dict[str, float] = {}
        for operation in self.operations:
            part = operation.origin.split(".")[2] if operation.block else ""
            module = {"attn": "attn", "norm1": "attn", "mlp": "mlp", "norm2": "mlp"}.get(part, operation.group)
            sums[module] = sums.get(module, 0) + (getattr(operation, figure) or 0)
        return sums

    @property
    def ledger(self) -> Ledger:
        """The operations alone, without what belongs to the machine."""
        return Ledger(self.operations, self.params, self.label)

    def only(self, include: str) -> Ledger:
        """The part of the ledger that `include` names, without what belongs to the machine."""
        return self.ledger.only(include)

    def scaled(self, factor: float) -> Ledger:
        """The ledger with each operation `factor` times as often."""
        return self.ledger.scaled(factor)

    def __add__(self, other: Ledger) -> Ledger:
        return self.ledger + getattr(other, "ledger", other)


def cascade(ran: Sequence[tuple[Simulation, float]], label: str | None = None) -> Simulation:
    """Passes of a cascade as one: the sum of each effort's cost times the share of images that run it (the first: all).

    ran: (Simulation, share from 0 to 1), lowest effort first, all on one machine. Every effort has its own weights: parameters add up.
    """
    first = ran[0][0]
    operations = tuple(operation for one, share in ran for operation in one.ledger.scaled(share).operations)
    bound = "upper bound: " if any("upper bound" in one.label for one, _ in ran) else ""
    label = label or f"{bound}cascade of " + " + ".join(f"{100 * share:.4g} %" for _, share in ran)
    return Simulation(
        operations, sum(one.params for one, _ in ran), f"{label} on {first.target}", first.target, first.batch,
        summed([(one.costs, share) for one, share in ran]), tuple(dict.fromkeys(text for one, _ in ran for text in one.remarks)), tuple(ran),
    )  # fmt: skip


def summed(parts: Iterable[tuple[Iterable[sim.Cost], float]]) -> tuple[sim.Cost, ...]:
    """Costs of equal kind, origin and unit as one, each part times its weight; a figure that no part has stays None."""
    sums: dict[tuple[str, str, str], list[float | None]] = {}
    for costs, weight in parts:
        for cost in costs:
            row = sums.setdefault((cost.kind, cost.origin, cost.unit), [None] * len(_FIGURES))
            for place, name in enumerate(_FIGURES):
                value = getattr(cost, name)
                if value is not None:
                    row[place] = (row[place] or 0.0) + value * weight
    return tuple(sim.Cost(None, *key, **dict(zip(_FIGURES, row))) for key, row in sums.items())


def part_of(cost: sim.Cost, factor: float) -> sim.Cost:
    """`factor` times a cost, of the same operation."""
    return replace(cost, **{name: None if getattr(cost, name) is None else getattr(cost, name) * factor for name in _FIGURES})
