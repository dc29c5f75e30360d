"""Writes results/simulators.md: every hardware number of the papers that a simulator can give, beside ours. Run: python scripts/simulators.py

results/published_hardware.csv holds the printed numbers, how near ours must come (tolerance), whether the papers state enough for the
number to follow exactly (checkable), where ours comes from, its name in the scripts beside this one, and why it differs.
"""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import simulator_figures as others
import vitality_figures as vitality

from foveate import sim
from foveate.card import stored_card

RESULTS = Path(__file__).parents[1] / "results"
MASKS = RESULTS / "sparse_masks.jsonl"
PRINTED = dict(zip(vitality.ENERGY_MODELS, ("DeiT-Base", "MobileViT-xxs", "MobileViT-xs", "LeViT-128s", "LeViT-128")))
FROM = {
    "input": "a number of the machine file, so that it proves nothing", "fit": "a constant was fitted to it or to its row",
    "chosen": "a discrete choice (efforts, MLP ratio, density, window, what counts) was made because it or its row fits", "out": "computed",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A printed number and ours."""

    paper: str
    where: str
    model: str
    quantity: str
    printed: str
    unit: str
    tolerance: str
    checkable: str
    basis: str
    ours: float | str
    why: str

    @property
    def error(self) -> float | None:
        """Ours over the printed number, minus 1; None where they are no numbers."""
        try:
            return float(self.ours) / float(self.printed) - 1
        except ValueError:
            return None

    @property
    def holds(self) -> bool:
        """Whether ours lies within the tolerance: "3 %", "1 point" (absolute), "x2" (a factor), "2.5 to 4", "range" (of the printed), "="."""
        size, _, unit = self.tolerance.partition(" ")
        if self.tolerance == "=":
            return self.error == 0 if self.error is not None else self.ours == self.printed
        if self.tolerance == "range" or unit.startswith("to "):
            low, high = map(float, (self.printed if self.tolerance == "range" else self.tolerance).split(" to "))
            return low <= float(self.ours) <= high
        if size.startswith("x"):
            return 1 / float(size[1:]) <= 1 + self.error <= float(size[1:])
        # A little beyond the tolerance: ours is exact where the printed number is rounded.
        return abs(100 * self.error if unit == "%" else float(self.ours) - float(self.printed)) <= float(size) * (1 + 1e-9)

    def cells(self) -> list[str]:
        """The row in words: what, printed, ours, error, tolerance, whether it holds, from where."""
        error = "" if self.error is None else f"{100 * self.error:+.1f} %".replace("-0.0", "+0.0")
        ours = self.ours if isinstance(self.ours, str) else str(self.ours) if float(self.ours).is_integer() else f"{self.ours:.4g}"
        unit = f" {self.unit}" if self.unit and self.unit != "x" else ""
        return [self.model, self.quantity, f"{self.printed}{unit}", ours, error, self.tolerance, "yes" if self.holds else "**no**", self.checkable, self.basis]


def rows() -> list[Row]:
    """All rows of the file with our figures."""
    rooms = (others.pivot, others.board, others.spvit, others.phone, vitality.tx2, vitality.table3, vitality.table5, vitality.table6, vitality.speeds,
             vitality.salo)  # fmt: skip
    ours = {name: value for room in rooms for name, value in room()}
    with (RESULTS / "published_hardware.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return [Row(**{"basis" if key == "from" else key: words for key, words in line.items()} | {"ours": ours[line["ours"]]}) for line in lines]


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *map(list, lines)])


def share(found: list[Row]) -> str:
    """How many rows hold, in words."""
    return f"{sum(row.holds for row in found)} of {len(found)} ({100 * sum(row.holds for row in found) / len(found):.0f} %)"


def summary(found: list[Row]) -> str:
    """The share of rows that hold, by what the papers allow to check and by where our figure comes from."""
    own, out = [row for row in found if row.basis != "input"], [row for row in found if row.basis == "out"]
    labels = {"exact": "follows exactly", "approx": "up to rounding and contradictions of the paper", "trend": "from hardware or unpublished settings"}
    lines = [[f"{name} ({words})", *(share([row for row in part if row.checkable == name]) for part in (found, own, out))] for name, words in labels.items()]
    return table(["rows within their tolerance", "all", "without inputs", "computed only"], [*lines, ["all", share(found), share(own), share(out)]])


def sections(found: list[Row]) -> list[str]:
    """A table for each table or passage of a paper, with one line for each reason why something differs."""
    parts = []
    for place in dict.fromkeys((row.paper, row.where) for row in found):
        here = [row for row in found if (row.paper, row.where) == place]
        head = ["model", "quantity", "printed", "ours", "error", "tolerance", "holds", "checkable", "from"]
        parts.append(f"### {place[0]}, {place[1]}\n\n{table(head, (row.cells() for row in here))}")
        whys: dict[str, list[str]] = {}
        for row in here:
            if row.why and (not row.holds or row.checkable == "exact" or row.basis == "chosen"):
                whys.setdefault(row.why, []).append(f"{row.model} {row.quantity}".replace("pre/post-processors", "").strip())
        parts += ["\n".join(f"- {', '.join(names)}: {why}." for why, names in whys.items())] if whys else []
    return parts


def fitted() -> str:
    """Every constant that was fitted or chosen, by machine."""
    lines = []
    for name in sim.targets():
        own = (sim.catalog.SHIPPED / f"{name}.toml").read_text(encoding="utf-8")
        for path, source in sim.load(name).sources.items():
            if (source.fitted or source.text.startswith("[CHOSEN]")) and source.text in own:
                lines.append([name, path, f"{source.value:g}", source.text])
    return table(["machine", "constant", "value", "source"], lines)


def sanger() -> str:
    """ViTALiTy over Sanger at several densities of Sanger's masks."""
    lines = []
    for density in vitality.DENSITIES:
        each = [vitality.gains(model, vitality.SPARSE, f"sanger@density={density}", "vitality") for model in vitality.SEVEN]
        means = [sum(one[key] for one in each) / len(each) for key in (("fig11", "attention"), ("fig11", "whole"), ("fig12", "attention"), ("fig12", "whole"))]
        lines.append([f"{density:g}", *(f"{value:.1f}" for value in means), *(f"{one['fig11', 'attention']:.1f}" for one in each)])
    return table(["density", "attention x", "end to end x", "attention, energy x", "end to end, energy x", *vitality.SEVEN], lines)


def measured() -> str:
    """The masks of a trained model (scripts/sparse_masks.py), and what Sanger and ViTALiTy make of them."""
    line = json.loads(MASKS.read_text(encoding="utf-8"))
    blocks = [key.rpartition("_")[2] for key in line if key.startswith("vitality_density")]
    figures = [[line[f"{name}_block_{block}"] for block in blocks] for name in ("vitality_density", "split_efficiency", "pack_efficiency")]
    kept, split, packed = (sum(figure) / len(figure) for figure in figures)
    found = vitality.gains(line["model"], line["plan"], f"sanger@density={MASKS},pack_efficiency={packed:.4f}", "vitality")
    # Predictions of a row add up to 1, so that fewer than 1 / T of them are above T.
    deit = stored_card(vitality.DEIT_T)
    tokens, most = deit.blocks[0].patches + deit.prefix_tokens, math.ceil(1 / vitality.THRESHOLD) - 1
    bound = most / tokens
    limit = vitality.gains(vitality.DEIT_T, vitality.SPARSE, f"sanger@density={bound:.3f}", "vitality")["fig11", "attention"]
    shown = [[block, *(f"{figure[number]:.2f}" for figure in figures)] for number, block in enumerate(blocks)]
    words = (
        f"`sparse_masks.jsonl` holds the masks of `{line['model']}` (50 tokens, T = {vitality.THRESHOLD:g}, {line['images']} test images), trained by "
        f"`{line['trained']}` and measured by `python scripts/sparse_masks.py RUN`. On average {100 * kept:.0f} % of the pairs survive. Rows "
        f"cut into pieces of 16 fill {100 * split:.0f} % of the array's slots, packed pieces {100 * packed:.0f} %. With these masks ViTALiTy is "
        f"{found['fig11', 'attention']:.1f} x as fast as Sanger in this model's attention and {found['fig11', 'whole']:.1f} x end to end.\n\n"
        f"They do not carry over to DeiT: at most {most} keys of a row can be above T, nearly all of 50 tokens but {100 * bound:.0f} % of {tokens}. So the "
        f"{vitality.DENSITY:g} chosen for the printed 7 x is out of DeiT's reach at T = {vitality.THRESHOLD:g}; the most that can survive, {bound:.2f}, gives "
        f"DeiT-Tiny {limit:.1f} x with full tiles."
    )
    mean = ["mean", *(f"{one:.2f}" for one in (kept, split, packed))]
    return words + "\n\n" + table(["block", "density", "slots filled by splitting", "by splitting and packing"], [*shown, mean])


def platforms() -> str:
    """ViTALiTy at each platform's peak, model by model, and against the TX2's measurements."""
    lines = []
    for target in vitality.PLATFORMS:
        for part in ("attention", "whole"):
            each = [vitality.gains(model, "dense", target, f"vitality@peak={target}")["fig11", part] for model in vitality.SEVEN]
            lines.append([target, "core attention" if part == "attention" else "end to end", *(f"{one:.1f}" for one in each), f"{sum(each) / len(each):.1f}"])
    for ours in ("vitality@peak=tx2", "vitality"):
        each = {model: vitality.gains(model, "dense", "tx2-attention", ours)["fig11", "attention"] for model in vitality.MEASURED}
        cells = [f"{each[model]:.0f}" if model in each else "" for model in vitality.SEVEN]
        lines.append([f"tx2-attention (measured) over {ours}", "core attention", *cells, f"{sum(each.values()) / len(each):.0f}"])
    return table(["baseline", "part", *vitality.SEVEN, "mean"], lines)


def dataflows(found: list[Row]) -> str:
    """Table V's overall energies as ratios."""
    overall = {(row.model, row.quantity.partition(",")[0]): row for row in found if row.where == "Table V" and row.quantity.endswith("Overall")}
    lines = []
    for model, name in PRINTED.items():
        stationary, forward = overall[name, "G-stationary"], overall[name, "down-forward"]
        lines.append([model, f"{float(stationary.printed) / float(forward.printed):.3f}", f"{stationary.ours / forward.ours:.3f}"])
    return table(["model", "printed", "ours"], lines)


def pipeline() -> str:
    """The intra-layer pipeline: what overlapping saves, and what the units beside the large array add."""
    lines, clock = [], sim.load("vitality").clock_mhz
    for model in vitality.SEVEN:
        found = vitality.simulated(model, "vitality", "vitality")
        mixing = {operation.origin for operation in found.only("attention").operations}
        kept = [cost for cost in found.costs if cost.origin in mixing and cost.cycles]
        alone, added = sum(cost.cycles for cost in kept), sum(cost.latency_ms for cost in kept) * clock * 1000
        beside = sum(cost.latency_ms for cost in kept if cost.unit != "SA-General") * clock * 1000
        lines.append([model, f"{alone:,.0f}", f"{added:,.0f}", f"{alone / added:.2f}", f"{beside:,.0f}"])
    return table(["model", "cycles one after the other", "cycles in the pipeline", "ratio", "of them beside the large array"], lines)


def text() -> str:
    """The whole file."""
    found = rows()
    exact = [row for row in found if row.checkable == "exact"]
    copies = ", ".join(f"{sim.load(f'vitality@peak={name}').copies:.3g} for {name}" for name in vitality.PLATFORMS)
    parts = [
        "# Simulated machines against the papers' printed numbers",
        "Generated by `python scripts/simulators.py`; do not edit. Printed numbers, tolerances and reasons: `published_hardware.csv`.",
        f"**{share(exact)} of the numbers that follow exactly from what the papers state hold within their tolerance.** "
        f"{sum(row.basis == 'input' for row in exact)} of them are inputs; of those that nothing was fitted or chosen for, "
        f"{share([row for row in exact if row.basis == 'out'])} hold.",
        summary(found),
        "From: " + "; ".join(f"*{word}*: {meaning}" for word, meaning in FROM.items()) + ". IRET prints no hardware number.",
        "## What was fitted or chosen", fitted(),
        "## Every number", *sections(found),
        "## ViTALiTy over Sanger, by density",
        "The share of score pairs that Sanger's mask keeps decides how long its attention takes. ViTALiTy prints 7 x (attention) and 3 x (end to end), "
        "in energy 6 x and 3 x, and no density. Whole models, convolutions included; the columns of the models are attention.",
        sanger(),
        "### Masks of a trained model", measured(),
        "## ViTALiTy at other machines' peaks (Figs. 11 and 12)",
        f"Copies of the accelerator that reach each platform's peak: {copies}. Baselines are rooflines, which no program reaches: the paper measured "
        "programs, and prints 236, 239 and 9 x for attention, 53, 30 and 2 x end to end. Depthwise convolutions use one column of the array: MobileViT loses.",
        platforms(),
        "## Energy of the two dataflows (Table V): G-stationary over down-forward", dataflows(found),
        "## What the intra-layer pipeline hides (Fig. 7)",
        "Between the projections and the output linears. `foveate simulate deit_tiny_patch16_224 --plan vitality --target vitality "
        "--timeline FILE.svg` draws it.",
        pipeline(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (RESULTS / "simulators.md").write_text(text(), encoding="utf-8")
