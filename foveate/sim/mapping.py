"""Mapping: which operation runs on which unit, and how. The third input beside the machine and the workload.

A rule names kinds of operations and, where it matters, their origins; the first rule that fits an operation decides. A machine
file brings its own rules; a mapping file (the same `[[mapping]]` tables alone) replaces them.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from foveate.sim.errors import SimError

NOWHERE = "nowhere"


@dataclass(frozen=True)
class Rule:
    """Operations of these kinds and origins run on `unit`.

    unit: an array's or processor's name, or "nowhere": the machine's model charges nothing for them, and `why` says on
        whose word.
    kinds: as in the Ledger ("gemm", "softmax", ...); patterns. origins: patterns such as "blocks.*.attn.*".
    then: further units that the results pass through: a softmax is "exp", then "accumulators", then "dividers".
    dataflow: instead of the array's own.
    folds: "apart": every fold of an array loads, fills and drains; "joined": what stays is loaded while the fold before streams, so that a
        fold takes as long as what streams, and the array fills once a block.
    pairs: of queries and keys, which are computed: "all"; "masked": the share `density` of them, packed into full folds with
        `pack_efficiency`; "window": `window` keys for each query. The three numbers are the machine's constants.
    cycles_per_fold: of an array, instead of streaming: what it does with each fold of scores that it holds (softmax).
    stays: operands ("inputs", "weights", "outputs") that are in the array before or after, and pass no memory.
    wide: operands that pass the memory as sums of the array's sum_bits. tokens: "m" or "k", the dimension whose rows lie side by side
        for all repetitions in a memory with lines.
    """

    unit: str
    kinds: tuple[str, ...] = ("*",)
    origins: tuple[str, ...] = ("*",)
    dataflow: str | None = None
    why: str = ""
    then: tuple[str, ...] = ()
    folds: str = "apart"
    pairs: str = "all"
    cycles_per_fold: float | None = None
    stays: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    tokens: str = "m"

    @property
    def units(self) -> tuple[str, ...]:
        """All units that an operation passes through."""
        return (self.unit, *self.then)

    def fits(self, kind: str, origin: str) -> bool:
        """Whether this rule speaks about an operation."""
        return any(fnmatchcase(kind, p) for p in self.kinds) and any(fnmatchcase(origin, p) for p in self.origins)


@lru_cache(maxsize=4096)
def rule_for(rules: tuple[Rule, ...], kind: str, origin: str, target: str) -> Rule:
    """The first rule that fits; raises SimError for an operation that the target cannot run."""
    for rule in rules:
        if rule.fits(kind, origin):
            return rule
    runs = ", ".join(dict.fromkeys(word for rule in rules for word in rule.kinds)) or "nothing"
    of = dict.fromkeys(pattern for rule in rules if any(fnmatchcase(kind, word) for word in rule.kinds) for pattern in rule.origins)
    runs += f"; of kind {kind!r} only {', '.join(of)}" if of else ""
    raise SimError(
        given=f"{origin}, an operation of kind {kind!r}, on {target}",
        allowed=f"what {target} has a unit for: {runs}",
        do=f'leave out the method that brings it, or add to the machine: [[mapping]] unit = "...", kinds = ["{kind}"]',
    )
