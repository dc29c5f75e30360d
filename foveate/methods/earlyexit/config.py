"""Settings of early exits (a classifier behind some blocks; an image leaves as soon as one of them is sure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.methods.base import Method, check_blocks, check_depth, check_weight, wrong

GATES = {"confidence": 0.7, "max_probability": 0.7, "margin": 0.5, "entropy": 0.3, "patience": 2}
"""The gates with their usual thresholds."""


@dataclass(frozen=True)
class EarlyExit(Method):
    """Classifiers behind some blocks; an image leaves at the first that is sure of it (section IV.C of IRET).

    after: 1-based blocks with an exit, in increasing order; (4, ..., 12) counts on. The last exit is the model's own head, whether the
        last block is named or not.
    gate: what is held against the threshold: "confidence" (the largest class probability; "max_probability" is the same), "margin"
        (between the two largest), "entropy" (of the probabilities, 1 for no idea), or "patience" (exits in a row that agree).
    threshold: confidence and margin leave from it on, and never at 1 (C_t of IRET in percent is 100 times this); entropy leaves up to it,
        and never at 0; patience leaves when so many exits in a row have agreed with the one before. None: 0.7, 0.5, 0.3 or 2.
    train: "joint" lets the exits' losses train the backbone too; "heads" keeps them from it (for a frozen backbone).
    exit_weight: weight of the mean cross-entropy of the exits in the training loss, >= 0.
    """

    name: ClassVar[str] = "earlyexit"

    after: tuple[int, ...]
    gate: str = "confidence"
    threshold: float | None = None
    train: str = "joint"
    exit_weight: float = 1.0

    def __post_init__(self):
        if isinstance(self.after, (list, tuple)) and ... in self.after:
            object.__setattr__(self, "after", _counted_on(self))
        check_blocks(self, "after")
        if not isinstance(self.gate, str) or self.gate not in GATES:
            wrong(self, "gate", self.gate, ", ".join(GATES), 'choose one, for instance "confidence"')
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.default("threshold"))
        self._check_threshold()
        if self.train not in ("joint", "heads"):
            wrong(self, "train", self.train, '"joint" (with the backbone) or "heads" (afterwards, on a frozen backbone)', "choose one of the two")
        check_weight(self, "exit_weight")

    def _check_threshold(self) -> None:
        value = self.threshold
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.gate == "patience":
            if not number or (isinstance(value, float) and not value.is_integer()) or value < 1:
                wrong(self, "threshold", value, "a whole number >= 1: how many exits in a row must agree with the one before", "2 is usual for patience")
            object.__setattr__(self, "threshold", int(value))
            return
        if not number or not 0 <= value <= 1:
            do = f"write {value / 100:g} for C_t = {value:g}" if number and 1 < value <= 100 else f"{GATES[self.gate]:g} is usual for {self.gate}"
            wrong(self, "threshold", value, "a number from 0 to 1", do)
        object.__setattr__(self, "threshold", float(value))

    @property
    def data_dependent(self) -> bool:
        return True

    def default(self, field: str) -> Any:
        return GATES[self.gate] if field == "threshold" else super().default(field)

    def sure(self, measure: Any, threshold: float | None = None) -> Any:
        """Which images leave at an exit: bool [...] for the gate's measure [...] there, an array or a tensor (see foveate.nn.exits.sureness); NaN stays.

        threshold: another than the settings' own.
        """
        threshold = self.threshold if threshold is None else threshold
        if self.gate == "entropy":
            return (measure <= threshold) & (threshold > 0)
        return (measure >= threshold) & (self.gate == "patience" or threshold < 1)

    def exits(self, card) -> tuple[int, ...]:
        return self.after

    def heads(self, card) -> tuple[int, ...]:
        """The blocks behind which a classifier of this method stands: all exits but the last."""
        return tuple(block for block in self.after if block < card.depth)

    def validate(self, card) -> None:
        check_depth(self, "after", card, card.depth)
        if not self.heads(card):
            wrong(self, "after", list(self.after), f"blocks 1...{card.depth} of {card.name}, one before the last among them",
                  f"add a block before {card.depth}: the exit there is the model's own head")
        if card.num_classes < 2:
            wrong(self, "after", list(self.after), f"models with two classes or more; {card.name} has {card.num_classes}",
                  "create the model with num_classes=...")


def _counted_on(method: EarlyExit) -> tuple[int, ...]:
    """`after` with each ... between two numbers replaced by what lies between them, in steps as the two numbers before it are apart."""
    found: list[int] = []
    for i, block in enumerate(method.after):
        if block is not ...:
            found.append(block)
            continue
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (*found, *method.after[i + 1 : i + 2])) and found
        step = found[-1] - found[-2] if whole and len(found) > 1 else 1
        if not whole or i + 1 >= len(method.after) or step < 1 or (method.after[i + 1] - found[-1]) % step:
            wrong(method, "after", list(method.after), "a ... between two block numbers, such as (4, ..., 12) or (2, 4, ..., 12)", "write all block numbers")
        found += range(found[-1] + step, method.after[i + 1], step)
    return tuple(found)
