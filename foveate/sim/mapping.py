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
    dataflow: instead of the array's own.
    """

    unit: str
    kinds: tuple[str, ...] = ("*",)
    origins: tuple[str, ...] = ("*",)
    dataflow: str | None = None
    why: str = ""

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
    raise SimError(
        given=f"{origin}, an operation of kind {kind!r}, on {target}",
        allowed=f"what {target} has a unit for: {runs}",
        do=f'leave out the method that brings it, or add to the machine: [[mapping]] unit = "...", kinds = ["{kind}"]',
    )
