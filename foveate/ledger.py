"""The Ledger: what a plan costs, operation by operation. The counter, the clock and every simulator fill in this one form.

An origin says where an operation runs: `embed.proj`, `blocks.3.attn.qk`, `blocks.3.selector.local`, `head.fc`. The number is the
block's 1-based number as in the papers and in every plan (not a module index); a part that acts after a block carries that
block's number.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from foveate.errors import FoveateError

VERSION = 1
MULTIPLYING = ("gemm", "conv")
_ARITHMETIC = {"softmax": ("add", "div", "exp"), "sum": ("add",), "add": ("add",), "divide": ("div",), "exp": ("exp",)}


@dataclass(frozen=True)
class Operation:
    """One operation for one image: `times` products of an m x k matrix and a k x n matrix, or m x n elements touched.

    kind: "gemm", "conv" (as the GEMM it unfolds to: m output places, n output channels, k inputs of one output, times groups),
        "softmax" (m rows of n), "norm" and "elementwise" (m x n elements), "sum" (m rows of n added to one), "add", "divide"
        and "exp" (m x n elements), "gather" (m rows of n moved).
    origin: where it runs, see the module's docstring.
    times: repetitions of the same shape (heads, windows, groups), or the mean number of them over images; may be fractional.
    latency_ms, energy_mj: for all `times` together; None where nobody has measured or simulated.
    """

    kind: str
    origin: str
    m: int = 1
    n: int = 1
    k: int = 1
    times: float = 1
    latency_ms: float | None = None
    energy_mj: float | None = None

    @property
    def macs(self) -> float:
        """Multiply-accumulates (the papers' "GFLOPs" are giga-MACs); 0 for everything that is not a product of matrices."""
        return self.m * self.n * self.k * self.times if self.kind in MULTIPLYING else 0

    @property
    def arithmetic(self) -> dict[str, float]:
        """Multiplications, additions, divisions and exponentials as Table I of ViTALiTy counts them; no figure for norms and activations."""
        if self.kind in MULTIPLYING:
            return {"mul": self.macs, "add": self.macs}
        return {name: self.elements for name in _ARITHMETIC.get(self.kind, ())}

    @property
    def elements(self) -> float:
        """Elements of the result, m n times."""
        return self.m * self.n * self.times

    @property
    def block(self) -> int | None:
        """The 1-based block, or None outside the blocks."""
        first, _, rest = self.origin.partition(".")
        return int(rest.partition(".")[0]) if first == "blocks" else None

    @property
    def group(self) -> str:
        """The kind of work in words: embed, qkv, qk, softmax, av, proj, mlp, norm, head, aux_head, selector, package, ..."""
        parts = self.origin.split(".")
        if parts[0] == "blocks":
            parts = parts[2:]
        return parts[1] if parts[0] == "attn" and len(parts) > 1 else parts[0].rstrip("12")

    def scaled(self, factor: float) -> Self:
        """The same operation `factor` times as often: its times, milliseconds and millijoules grow together."""
        return replace(
            self,
            times=self.times * factor,
            latency_ms=None if self.latency_ms is None else self.latency_ms * factor,
            energy_mj=None if self.energy_mj is None else self.energy_mj * factor,
        )


def _mixes_tokens(operation: Operation) -> bool:
    parts = operation.origin.split(".")
    return parts[0] == "blocks" and parts[2] == "attn" and parts[3] not in ("qkv", "gate", "proj")


INCLUDED: dict[str, Callable[[Operation], bool]] = {
    "all": lambda operation: True, "blocks": lambda operation: operation.block is not None, "attention": _mixes_tokens}
"""What `Ledger.only` can keep."""


@dataclass(frozen=True)
class Ledger:
    """The operations of one image (or of the mean image) with their totals.

    operations: in the order in which they run.
    params: parameters of the model with its methods.
    label: what the figures stand for, such as "one image", "dense upper bound" or "mean over 2000 images".
    """

    operations: tuple[Operation, ...] = ()
    params: int = 0
    label: str = "one image"

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all operations."""
        return sum(operation.macs for operation in self.operations)

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds of all operations that have some; None where none has."""
        return _total(operation.latency_ms for operation in self.operations)

    @property
    def energy_mj(self) -> float | None:
        """Millijoules of all operations that have some; None where none has."""
        return _total(operation.energy_mj for operation in self.operations)

    def by_operation(self, figure: str = "macs") -> dict[str, float]:
        """`figure` ("macs", "latency_ms" or "energy_mj") summed over each group of operations, in running order."""
        return self._summed(figure, lambda operation: operation.group)

    def arithmetic(self) -> dict[str, float]:
        """Multiplications ("mul"), additions, divisions and exponentials of all operations (Table I of ViTALiTy)."""
        counts = dict.fromkeys(("mul", "add", "div", "exp"), 0.0)
        for operation in self.operations:
            for name, number in operation.arithmetic.items():
                counts[name] += number
        return counts

    def by_block(self, figure: str = "macs") -> dict[str, float]:
        """`figure` summed over "embed", "blocks.1", "blocks.2", ..., "head"; what acts after a block counts with that block."""
        return self._summed(figure, lambda o: o.group if o.block is None else f"blocks.{o.block}")

    def shares(self, figure: str | None = None) -> dict[str, float]:
        """Fraction of `figure` that each group takes; by default of the latency where there is one, of the MACs otherwise."""
        figure = figure or ("macs" if self.latency_ms is None else "latency_ms")
        groups = self.by_operation(figure)
        total = sum(groups.values())
        return {group: value / total for group, value in groups.items()} if total else {}

    def only(self, include: str) -> Self:
        """The part that `include` names: "all", "blocks" (operations that belong to a block), or "attention" (those between
        the projections and the output linear of each block, as Table I of ViTALiTy counts).

        Raises FoveateError for another word.
        """
        if include not in INCLUDED:
            raise FoveateError(given=f"include={include!r}", allowed=", ".join(map(repr, INCLUDED)), do='write include="blocks"')
        return replace(self, operations=tuple(filter(INCLUDED[include], self.operations)))

    def table(self) -> str:
        """A plain text table: a row for each group of operations, then the total."""
        figures = {"macs": "MMACs", "latency_ms": "ms", "energy_mj": "mJ"}
        sums = {figure: self.by_operation(figure) for figure in figures if _total_of(self, figure) is not None}
        shares = self.shares()
        share_of = "share of ms" if self.latency_ms is not None else "share"
        rows = [["operation", *(figures[figure] for figure in sums), share_of]]
        for group in sums["macs"]:
            if any(values[group] for values in sums.values()):
                cells = [_cell(values[group], figure) for figure, values in sums.items()]
                rows.append([group, *cells, f"{100 * shares.get(group, 0):.1f} %"])
        rows.append(["total", *(_cell(sum(values.values()), figure) for figure, values in sums.items()), "100.0 %"])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [row[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:])) for row in rows]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], f"{self.label}; {self.params:,} parameters"])

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal Ledger."""
        rows = [{key: value for key, value in asdict(o).items() if value is not None} for o in self.operations]
        return json.dumps({"version": VERSION, "label": self.label, "params": self.params, "operations": rows})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The Ledger that `to_json` wrote; raises FoveateError where the text is not one."""
        try:
            form = json.loads(text)
            version = form["version"]
            if version == VERSION:
                return cls(tuple(Operation(**row) for row in form["operations"]), form["params"], form["label"])
        except (ValueError, KeyError, TypeError) as error:
            raise FoveateError(
                given=f"a text that is no ledger ({error})",
                allowed="JSON as Ledger.to_json() writes it",
                do="write the file again with `foveate count --json` or Ledger.to_json()",
            ) from error
        raise FoveateError(
            given=f"a ledger of version {version}", allowed=f"version {VERSION}", do="read it with a newer foveate"
        )

    def __add__(self, other: Self) -> Self:
        """Both run: operations one after the other, parameters added, the label of both."""
        label = self.label if self.label == other.label else f"{self.label} + {other.label}"
        return type(self)(self.operations + other.operations, self.params + other.params, label)

    def scaled(self, factor: float) -> Self:
        """Each operation `factor` times as often (the fraction of images that run it); the parameters stay."""
        return replace(self, operations=tuple(operation.scaled(factor) for operation in self.operations))

    @classmethod
    def mean(cls, ledgers: Iterable[Self], weights: Sequence[float] | None = None, label: str | None = None) -> Self:
        """The weighted mean of costs, which is not the cost of mean token counts (attention is quadratic).

        ledgers: of one model on several images; weights: for example how many images each stands for (default: 1 each).
        Operations of equal shape and origin are merged, with `times` the mean number of times they run.
        Raises FoveateError where there is no ledger or where the parameters differ.
        """
        ledgers = list(ledgers)
        weights = [1] * len(ledgers) if weights is None else list(weights)
        if not ledgers or len(weights) != len(ledgers) or sum(weights) <= 0:
            raise FoveateError(
                given=f"{len(ledgers)} ledgers with {len(weights)} weights",
                allowed="at least one ledger and a weight for each, not all 0",
                do="count at least one image",
            )
        if len({ledger.params for ledger in ledgers}) > 1:
            raise FoveateError(
                given="ledgers of models with different numbers of parameters",
                allowed="ledgers of one model",
                do="add ledgers of different models with + and scaled(fraction)",
            )
        label = label or f"mean over {sum(weights):,} images"
        if len(ledgers) == 1:
            return replace(ledgers[0], label=label)
        return cls(_merged(ledgers, [weight / sum(weights) for weight in weights]), ledgers[0].params, label)

    def _summed(self, figure: str, key: Any) -> dict[str, float]:
        sums: dict[str, float] = {}
        for operation in self.operations:
            sums[key(operation)] = sums.get(key(operation), 0) + (getattr(operation, figure) or 0)
        return sums


def _merged(ledgers: list[Ledger], fractions: list[float]) -> tuple[Operation, ...]:
    merged: dict[tuple, Operation] = {}
    for ledger, fraction in zip(ledgers, fractions, strict=True):
        for operation in ledger.operations:
            shape = (operation.kind, operation.origin, operation.m, operation.n, operation.k)
            part = operation.scaled(fraction)
            merged[shape] = _both(merged[shape], part) if shape in merged else part
    # Equal origins lie side by side again, in the order in which the first ledger that has them runs them.
    order: dict[str, int] = {}
    for operation in merged.values():
        order.setdefault(operation.origin, len(order))
    return tuple(sorted(merged.values(), key=lambda operation: order[operation.origin]))


def _both(one: Operation, other: Operation) -> Operation:
    return replace(
        one,
        times=one.times + other.times,
        latency_ms=_total((one.latency_ms, other.latency_ms)),
        energy_mj=_total((one.energy_mj, other.energy_mj)),
    )


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _total_of(ledger: Ledger, figure: str) -> float | None:
    return getattr(ledger, figure)


def _cell(value: float, figure: str) -> str:
    return f"{value / 1e6:,.2f}" if figure == "macs" else f"{value:,.3f}"
