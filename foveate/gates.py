"""Gates: whether an answer is sure enough to stand. Torch-free values; the measures themselves are in foveate.nn.gates."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from foveate.errors import FoveateError


@dataclass(frozen=True)
class Gate:
    """A measure of the logits with a threshold: beyond it an image is hard and goes on to more effort; on it, it stays.

    threshold: in [0, 1], the range of every measure. Raises FoveateError for anything else.
    """

    name: ClassVar[str]
    rises: ClassVar[bool]  # whether a larger measure means a harder image

    threshold: float

    def __post_init__(self):
        value = self.threshold
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise FoveateError(f"{self.name}(threshold={value!r})", "a threshold from 0 to 1", f"write for instance fv.{type(self).__name__}(threshold=0.3)")
        object.__setattr__(self, "threshold", float(value))

    @property
    def limit(self) -> float:
        """The greatest difficulty (foveate.nn.gates.difficulty) that stays: the threshold, negated where a larger measure is easier."""
        return self.threshold if self.rises else -self.threshold

    def at(self, limit: float) -> Self:
        """The same gate with the threshold that lets difficulties up to `limit` stay."""
        return replace(self, threshold=abs(float(limit)))

    @property
    def open(self) -> Self:
        """The same gate with the threshold at which every image stays that has probabilities."""
        return replace(self, threshold=1.0 if self.rises else 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"gate": self.name, "threshold": self.threshold}

    def __str__(self) -> str:
        return f"{self.name} {'>' if self.rises else '<'} {self.threshold:.4g}"


@dataclass(frozen=True)
class Entropy(Gate):
    """Passes on images whose normalised entropy (Eq. 3 of PIVOT) lies above `threshold`: 1 is no idea, 0 is certainty."""

    name: ClassVar[str] = "entropy"
    rises: ClassVar[bool] = True


@dataclass(frozen=True)
class MaxProbability(Gate):
    """Passes on images whose largest class probability lies below `threshold`."""

    name: ClassVar[str] = "max_probability"
    rises: ClassVar[bool] = False


@dataclass(frozen=True)
class Margin(Gate):
    """Passes on images whose two largest class probabilities lie less than `threshold` apart."""

    name: ClassVar[str] = "margin"
    rises: ClassVar[bool] = False


GATES: dict[str, type[Gate]] = {gate.name: gate for gate in (Entropy, MaxProbability, Margin)}


def gate_class(name: str) -> type[Gate]:
    """The gate called `name` (a hyphen counts as an underscore); an unknown name raises FoveateError with the nearest one."""
    word = str(name).replace("-", "_")
    if word not in GATES:
        near = difflib.get_close_matches(word, GATES, n=1)
        raise FoveateError(f"gate {name!r}", ", ".join(GATES), f"did you mean {near[0]!r}?" if near else "choose one of these")
    return GATES[word]


def gate_from_dict(data: Any, source: str = "a gate") -> Gate:
    """Reads what `Gate.to_dict` wrote; raises FoveateError for unknown keys, gates and thresholds."""
    if not isinstance(data, dict) or set(data) != {"gate", "threshold"}:
        raise FoveateError(f"{source} with the gate {data!r}", '{"gate": "entropy", "threshold": 0.3}', "give each gate its name and its threshold")
    return gate_class(data["gate"])(data["threshold"])
