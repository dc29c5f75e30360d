"""What each low effort constraint (LEC) of a cascade gives, as a table, curves and bars (Fig. 8 of PIVOT)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.efforts import Outcomes, SweepPoint
from foveate.report import Bar, Bars, Chart, Line, Made, Results, Table

if TYPE_CHECKING:
    from foveate.cascade_plan import CascadePlan

PARTS = ("low effort", "high effort", "recomputation")


def sweep_results(plan: CascadePlan, outcomes: Outcomes, points: list[SweepPoint], machine: dict[str, Any], made: Made) -> Results:
    """The sweep as a report. points: at least one."""
    delay, energy = outcomes.delay_unit, outcomes.energy_unit
    product = f"{delay}²" if delay == energy else f"{energy} {delay}"
    lec = np.array([100 * point.lec for point in points])
    table = Table("What each low effort constraint gives", _head(len(points[0].fractions), delay, product), tuple(_row(point) for point in points),
                  f"On the {outcomes.images:,} images that the thresholds were calibrated on; {outcomes.cost}. EDP is energy times delay of the mean image; "
                  "summed over passes, as PIVOT prints it for cascades, it falls into the pass of the low effort where that answered, those of higher "
                  "efforts that answered, and passes whose answer was not taken.", left=0)  # fmt: skip
    accuracy = Chart("Accuracy over the low effort constraint", "LEC (% of images)", "top-1 accuracy (%)", lec,
                     (Line("cascade", np.array([point.accuracy_percent for point in points])),), "Thresholds rise from left to right.")
    products = (Line("energy x delay of the mean image", np.array([point.edp for point in points])),
                Line("summed over passes", np.array([point.edp_of_passes for point in points])))
    edp = Chart("Energy-delay product over the constraint", "LEC (% of images)", f"EDP ({product})", lec, products)
    bars = tuple(Bar(f"LEC {100 * point.lec:g}", tuple(zip(PARTS, (point.edp_low, point.edp_high, point.edp_recomputation)))) for point in points)
    split = Bars("Where the energy-delay product comes from", f"EDP summed over passes ({product})", bars)
    return Results(str(plan), _sentence(points), machine=machine, made=made, tables=(table,), charts=(accuracy, edp), bars=(split,))


def _head(efforts: int, delay: str, product: str) -> tuple[str, ...]:
    shares = ("F_L (%)", "F_H (%)") if efforts == 2 else tuple(f"effort {number} (%)" for number in range(1, efforts + 1))
    return ("LEC (%)", "threshold", *shares, "accuracy (%)", "GMACs", f"delay ({delay})", "recomputed", f"EDP ({product})", "of passes", *PARTS)


def _row(point: SweepPoint) -> tuple[str, ...]:
    shares = (f"{100 * fraction:.1f}" for fraction in point.fractions)
    products = (point.edp, point.edp_of_passes, point.edp_low, point.edp_high, point.edp_recomputation)
    thresholds, again = ", ".join(f"{value:.4f}" for value in point.thresholds), f"{100 * point.delay_recomputation / point.delay:.1f} %"
    return (f"{100 * point.lec:g}", thresholds, *shares, f"{point.accuracy_percent:.2f}", f"{point.macs / 1e9:.4g}", f"{point.delay:.4g}", again,
            *(f"{value:.4g}" for value in products))  # fmt: skip


def _sentence(points: list[SweepPoint]) -> str:
    best = max(points, key=lambda point: (point.accuracy_percent, point.lec))
    return f"The most accurate constraint here is LEC {100 * best.lec:g}: {best.accuracy_percent:.2f} % at {best.macs / 1e9:.4g} GMACs."
