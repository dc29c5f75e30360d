"""CascadePlan: a plan of plans, from the cheapest effort to the dearest, with the gates between them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError
from foveate.gates import Gate, gate_from_dict

if TYPE_CHECKING:
    from foveate.trace import Trace

VERSION = 1
EFFORT = "effort-{}"
"""Name of the sub-run of an effort, counted from 1, in the run folder of a cascade."""


@dataclass(frozen=True)
class CascadePlan:
    """Every image runs the first effort; what a gate finds too hard runs the next one too, from the image on (section 3.1 of PIVOT).

    Made by `Plan.cascade`. efforts: Plans, at least two, lowest first; each has weights of its own. gates: one between two efforts,
    or one value for all. fractions: the share of images that each effort answers, as measured on some data; sums to 1, may be None.
    Raises FoveateError for fewer than two efforts, cascades inside cascades, and gates or fractions that do not fit.
    """

    efforts: tuple[Any, ...]
    gates: tuple[Gate, ...]
    fractions: tuple[float, ...] | None = None

    def __post_init__(self):
        efforts = tuple(self.efforts) if isinstance(self.efforts, (list, tuple)) else (self.efforts,)
        wrong = [e for e in efforts if not hasattr(e, "methods")]
        if wrong or len(efforts) < 2:
            raise FoveateError(f"a cascade with {wrong[0]} as an effort" if wrong else f"a cascade of {len(efforts)} effort{'s' * (not efforts)}",
                               "two plans or more, the cheapest first",
                               "write fv.Plan.cascade([low, high], gate=fv.Entropy(0.3)) with fv.Plan([...]) for each")
        gates = (self.gates,) * (len(efforts) - 1) if isinstance(self.gates, Gate) else self.gates
        if not isinstance(gates, (list, tuple)) or len(gates) != len(efforts) - 1 or not all(isinstance(g, Gate) for g in gates):
            raise FoveateError(f"gate={self.gates!r} for {len(efforts)} efforts",
                               f"one gate for all, or {len(efforts) - 1}, one behind each effort but the last",
                               "write for instance gate=fv.Entropy(threshold=0.3)")
        object.__setattr__(self, "efforts", efforts)
        object.__setattr__(self, "gates", tuple(gates))
        if self.fractions is not None:
            object.__setattr__(self, "fractions", _checked_fractions(self.fractions, len(efforts)))

    @property
    def data_dependent(self) -> bool:
        """Always: how many efforts an image runs depends on the image."""
        return True

    def folders(self, run: str | Path) -> list[Path]:
        """The sub-runs of the cascade's run folder, lowest effort first."""
        return [Path(run) / EFFORT.format(number) for number in range(1, len(self.efforts) + 1)]

    def with_gates(self, gates: Sequence[Gate], fractions: Sequence[float] | None = None) -> "CascadePlan":
        """The same efforts behind other gates, such as calibrated ones, with the fractions that these were seen to give."""
        return replace(self, gates=tuple(gates), fractions=None if fractions is None else tuple(fractions))

    def validate(self, card) -> None:
        """Raises FoveateError if an effort does not fit the backbone that `card` describes."""
        for effort in self.efforts:
            effort.validate(card)

    def to_dict(self) -> dict[str, Any]:
        form = {"foveate_plan": VERSION, "cascade": [e.to_dict() for e in self.efforts], "gates": [g.to_dict() for g in self.gates]}
        return form if self.fractions is None else form | {"fractions": list(self.fractions)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name the cascade: equal cascades have equal digests."""
        form = self.to_dict() | {"cascade": [e.digest() for e in self.efforts]}
        return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str, read: Callable[[Any, str], Any]) -> "CascadePlan":
        """Reads `to_dict`'s form, each effort with `read(data, source)`; raises FoveateError on unknown keys and wrong types."""
        shape = '{"foveate_plan": 1, "cascade": [{"foveate_plan": 1, "methods": [...]}, ...], "gates": [{"gate": "entropy", "threshold": 0.3}]}'
        unknown = sorted(set(data) - {"foveate_plan", "cascade", "gates", "fractions"})
        if unknown:
            raise FoveateError(f"{source} with {', '.join(map(repr, unknown))}", "the keys foveate_plan, cascade, gates and fractions",
                               "remove the unknown keys")
        for key in ("cascade", "gates"):
            if not isinstance(data.get(key), list):
                raise FoveateError(f"{source} with {key}={data.get(key)!r}", shape, f"give {key} as a list")
        if any(isinstance(form, dict) and "cascade" in form for form in data["cascade"]):
            raise FoveateError(f"{source} with a cascade inside a cascade", shape, "list all efforts in one cascade, the cheapest first")
        efforts = [read(form, f"effort {number} of {source}") for number, form in enumerate(data["cascade"], 1)]
        return cls(tuple(efforts), tuple(gate_from_dict(g, source) for g in data["gates"]), data.get("fractions"))

    def __str__(self) -> str:
        first, *others = self.efforts
        return "; ".join([f"cascade: {first}", *(f"where {gate}: {effort}" for gate, effort in zip(self.gates, others))])


def passes(plan: Any, fractions: Sequence[float] | None = None, trace: Trace | None = None) -> list[tuple[Any, float]]:
    """(plan, share of images that run it) of every effort: what a count or a simulation of `plan` adds up.

    The first effort runs for all images, a higher one for those that no lower one answered, and nothing is taken over from a lower
    effort: the cost of a cascade is the sum of share * cost (section 3.3 of PIVOT, D_L + F_H D_H).
    plan: a Plan (one pass for all) or a CascadePlan. fractions: share of images that each effort answers, by default the plan's own.
    trace: of a cascade, instead of fractions. With neither, every effort runs for every image: the upper bound.
    Raises FoveateError where fractions or trace do not fit the plan.
    """
    if not isinstance(plan, CascadePlan):
        if fractions is not None:
            raise FoveateError(f"fractions {tuple(fractions)} for the plan {plan}", "fractions of a cascade", "leave them out, or give a plan of Plan.cascade")
        return [(plan, 1.0)]
    if trace is not None:
        return list(zip(plan.efforts, _ran(trace, len(plan.efforts), fractions)))
    fractions = plan.fractions if fractions is None else _checked_fractions(fractions, len(plan.efforts))
    if fractions is None:
        return [(effort, 1.0) for effort in plan.efforts]
    return [(effort, 1.0 if n == 0 else min(1.0, math.fsum(fractions[n:]))) for n, effort in enumerate(plan.efforts)]


def _ran(trace: Trace, efforts: int, fractions: Any) -> list[float]:
    if fractions is not None:
        raise FoveateError("both fractions and a trace", "one of the two", "leave the fractions out: the trace has them")
    groups = {one.effort: len(one.images) for one in trace.passes}
    if not groups or trace.images < 1 or max(groups) > efforts:
        raise FoveateError(f"a trace of {trace.images} images with passes of {max(groups, default=0)} efforts", f"a trace of this cascade of {efforts} efforts",
                           "use the Trace that cascade.traced(images) returned")
    return [groups.get(number, 0) / trace.images for number in range(1, efforts + 1)]


def _checked_fractions(fractions: Any, efforts: int) -> tuple[float, ...]:
    numbers = isinstance(fractions, (list, tuple)) and all(
        isinstance(f, (int, float)) and not isinstance(f, bool) and 0 <= f <= 1 for f in fractions)
    if not numbers or len(fractions) != efforts or abs(math.fsum(fractions) - 1) > 1e-6:
        total = f", which add up to {math.fsum(fractions):.6g}" if numbers else ""
        raise FoveateError(f"fractions {fractions!r}{total}", f"{efforts} numbers from 0 to 1 that add up to 1, one an effort",
                           "give the share of images that each effort answers, such as (0.8, 0.2) for two efforts")
    return tuple(float(f) for f in fractions)
