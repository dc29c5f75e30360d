"""Machine: what an accelerator is made of. Numbers only; which operation runs where is the Mapping's business.

Each class lists its keys as a machine file writes them: a number's unit stands in the key's name.
"""

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, field

from foveate.sim.mapping import Rule

PRODUCTS = ("gemm", "conv")


@dataclass(frozen=True)
class Source:
    """Where a number of the file comes from. fitted: it was tuned until a printed result came out, so that result proves nothing."""

    value: float
    text: str = ""
    fitted: bool = False


@dataclass(frozen=True)
class Array:
    """A systolic array of rows x columns multiply-accumulators, one product each and cycle.

    dataflow: which operand stays in place. sum_bits: width of its partial sums. power_w: while it works.
    fill_cycles: from the first operand that enters to the first result, for joined folds (Rule.folds); rows + columns - 2 by default.
    energy_pj_per_mac: per multiply-accumulate that the product needs. energy_pj_per_weight: per word of the second operand that enters.
    rated_power_w: with everything busy, as synthesis states it. activity: the share of it that what is busy takes; what is idle takes none.
    """

    name: str
    rows: int
    columns: int
    dataflow: str
    sum_bits: int = 32
    fill_cycles: int | None = None
    power_w: float | None = None
    energy_pj_per_mac: float | None = None
    energy_pj_per_weight: float | None = None
    rated_power_w: float | None = None
    activity: float | None = None
    area_mm2: float | None = None


@dataclass(frozen=True)
class Memory:
    """A memory. holds: "inputs", "weights", "outputs" (a buffer of the array), "all" (shared on the chip) or "outside" (DRAM).

    bandwidth_gb_s: 10^9 bytes a second. size_kb: 1024 bytes. line_words: every access reads or writes whole lines of so many words; a
    row of all heads side by side starts on a line of its own.
    """

    name: str
    holds: str
    size_kb: float | None = None
    bandwidth_gb_s: float | None = None
    energy_pj_per_byte: float | None = None
    line_words: int | None = None
    power_w: float | None = None
    rated_power_w: float | None = None
    area_mm2: float | None = None


@dataclass(frozen=True)
class Processor:
    """A unit for everything that is no product on an array: softmax, GELU, norms, comparisons, divisions, entropy, ...

    Its time is the sum of what is given: ns_per_element (m n times), ns_per_row (m times), cycles_per_element and cycles_per_row at the
    machine's clock, elements_per_cycle, lanes (a row of all repetitions side by side takes n times / lanes cycles, rounded up),
    gmac_per_s (products of matrices at a fixed rate), ns_per_operation (start-up of each).
    rated_power_w, activity: as in Array; a lane without an element is idle only where the whole row is done.
    """

    name: str
    ns_per_element: float | None = None
    ns_per_row: float | None = None
    cycles_per_element: float | None = None
    elements_per_cycle: float | None = None
    cycles_per_row: float | None = None
    lanes: int | None = None
    gmac_per_s: float | None = None
    ns_per_operation: float | None = None
    power_w: float | None = None
    rated_power_w: float | None = None
    activity: float | None = None
    energy_pj_per_element: float | None = None
    energy_pj_per_mac: float | None = None
    area_mm2: float | None = None


@dataclass(frozen=True)
class Overhead:
    """Time that belongs to no operation. per: "block" or "image"."""

    name: str
    per: str
    latency_ms: float


@dataclass(frozen=True)
class Flow:
    """What an operation of a block waits for, in a pipelined accelerator; without a Flow it waits for everything before it.

    operation, after, follows: patterns of names below the block, such as "attn.context". after: begins when these have ended.
    follows: takes their results as they come. Where all operations that flow together repeat equally often (heads), each repetition
    waits for its own; of an operation that runs once it waits for its share.
    """

    operation: str
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A measured latency of a model, named as in timm. gmacs: the cost of what was measured, in 10^9 MACs; 0 where nothing multiplies.

    origins: patterns of the operations that were measured together; empty for the whole model.
    """

    model: str
    method: str
    gmacs: float
    latency_ms: float
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """Something a reader of the figures must know, such as a contradiction in the paper. models: patterns of names it is about."""

    text: str
    models: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Machine:
    """An accelerator or a processor, as one TOML file describes it.

    kind: "accelerator" (units that run one after the other), "pipeline" (units that overlap as `flows` allow), "roofline" (peak and
    bandwidth) or "table" (measured latencies).
    power_w: of everything, charged for the whole latency; without it the units' own energies are added up.
    copies: so many machines share the work evenly; may be a fraction.
    rules: the mapping that the file brings along. figures: numbers that are documented and not used.
    constants: numbers that rules refer to: density and pack_efficiency (pairs that survive a mask, in blocks that predict one), window.
    densities: density of each block, where it is known; None where nothing is masked. sources: by dotted path, such as "arrays.pe.rows".
    """

    name: str
    kind: str
    about: str
    precision_bits: int | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    peak_gmac_per_s: float | None = None
    bandwidth_gb_s: float | None = None
    overhead_us: float = 0.0
    copies: float = 1.0
    arrays: tuple[Array, ...] = ()
    memories: tuple[Memory, ...] = ()
    processors: tuple[Processor, ...] = ()
    overheads: tuple[Overhead, ...] = ()
    entries: tuple[Entry, ...] = ()
    rules: tuple[Rule, ...] = ()
    flows: tuple[Flow, ...] = ()
    notes: tuple[Note, ...] = ()
    figures: Dictionary[str, float] = field(default_factory=dict)
    constants: Dictionary[str, float] = field(default_factory=dict)
    densities: tuple[float | None, ...] = ()
    sources: Dictionary[str, Source] = field(default_factory=dict)

    @property
    def units(self) -> tuple[Array | Processor, ...]:
        """Arrays, then processors."""
        return (*self.arrays, *self.processors)

    def unit(self, name: str) -> Array | Processor:
        """The array or processor of this name; the mapping was checked against them when the file was read."""
        return next(unit for unit in self.units if unit.name == name)

    def memory(self, holds: str) -> Memory | None:
        """The first memory for "inputs", "weights", "outputs", "all" or "outside"."""
        return next((memory for memory in self.memories if memory.holds == holds), None)

    def density(self, origin: str) -> float | None:
        """Share of score pairs that survive the mask in the block where an operation runs; 1 where nothing is known, None without a mask."""
        parts = origin.split(".")
        if self.densities and parts[0] == "blocks":
            return self.densities[int(parts[1]) - 1]
        return self.constants.get("density", 1.0)

    @property
    def peak(self) -> float | None:
        """10^9 multiply-accumulates a second when everything is busy; None where nothing multiplies at a known rate."""
        if self.peak_gmac_per_s is not None:
            return self.peak_gmac_per_s * self.copies
        rates = [a.rows * a.columns * self.clock_mhz / 1000 for a in self.arrays]
        rates += [p.gmac_per_s for p in self.processors if p.gmac_per_s]
        return sum(rates) * self.copies or None
