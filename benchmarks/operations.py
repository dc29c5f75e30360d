"""Tables I and IV of ViTALiTy beside what the Ledger counts: `python benchmarks/operations.py`.

Each row is counted twice: with the settings that yield the printed figure (they differ from column to column, see the notes),
and with the true structure of the model.
"""

from dataclasses import replace

from rich.console import Console
from rich.table import Table

import foveate as fv
from foveate.card import BlockCard, Card
from foveate.counting import card_of

TAYLOR, SOFTMAX = ("mul", "add", "div"), ("mul", "add", "exp", "div")
PRINTED = {
    ("DeiT-Tiny", "taylor"): (58.3, 61.0, 0.5), ("DeiT-Tiny", "softmax"): (178.8, 180.2, 1.4, 1.4),
    ("MobileViT-xs", "taylor"): (4.8, 5.3, 0.1), ("MobileViT-xs", "softmax"): (28.4, 29.0, 0.6, 0.6),
    ("LeViT-128", "taylor"): (3.4, 4.0, 0.1), ("LeViT-128", "softmax"): (36.4, 37.5, 1.1, 1.1),
}  # fmt: skip


def arithmetic(card: Card, kind: str, subsampling: bool = True) -> tuple[float, ...]:
    """Millions of multiplications, additions, ... between projections and output linears; subsampling: those blocks count."""
    ledger = fv.count(card, "vitality()" if kind == "taylor" else "dense", include="attention")
    kept = tuple(o for o in ledger.operations if subsampling or card.block(o.block).queries is None)
    counts = replace(ledger, operations=kept).arithmetic()
    return tuple(counts[name] / 1e6 for name in (TAYLOR if kind == "taylor" else SOFTMAX))


def without_prefix(card: Card) -> Card:
    return replace(card, prefix_tokens=0)


def one_pixel_group(card: Card) -> Card:
    """MobileViT with one of its four pixel groups, which is what the paper counts."""
    return replace(card, blocks=tuple(replace(b, groups=1, grid=(b.grid[0] // 2, b.grid[1] // 2)) for b in card.blocks))


def fitted_levit(card: Card) -> Card:
    """LeViT-128 as the printed figures need it: 256 tokens in the first stage, values as narrow as keys."""
    def fitted(block: BlockCard) -> BlockCard:
        return replace(block, value_dim=block.head_dim, grid=(16, 16) if block.grid == (14, 14) else block.grid)

    return replace(card, blocks=tuple(map(fitted, card.blocks)))


def rows() -> list[tuple[str, str, Card, Card, str]]:
    """(model, attention, card with the paper's settings, true card, note)."""
    deit, mobile, levit = (card_of(name) for name in ("deit_tiny_patch16_224", "mobilevit_xs", "levit_128"))
    group = "one of 4 pixel groups"
    fit = "fitted: n = 256/49/16, d_v = 16, without the subsampling attentions"
    return [
        ("DeiT-Tiny", "taylor", without_prefix(deit), deit, "n = 196, without the class token"),
        ("DeiT-Tiny", "softmax", deit, deit, "n = 197"),
        ("MobileViT-xs", "taylor", one_pixel_group(mobile), mobile, group),
        ("MobileViT-xs", "softmax", one_pixel_group(mobile), mobile, group + "; printed with stages of 2, 3, 4 blocks, the model has 2, 4, 3"),
        ("LeViT-128", "taylor", fitted_levit(levit), levit, fit),
        ("LeViT-128", "softmax", fitted_levit(levit), levit, fit),
    ]


def gigamacs(plan: str, projection: bool) -> float:
    """GMACs of DeiT-Tiny's attentions with their linears; projection: the output linear counts."""
    kept = [o for o in fv.count("deit_tiny_patch16_224", plan).operations if ".attn." in o.origin and (projection or not o.origin.endswith(".proj"))]
    return sum(o.macs for o in kept) / 1e9


def main() -> None:
    table = Table("model", "attention", "printed (M)", "counted (M)", "true structure (M)", "counted with", title="Table I: mul / add / div, mul / add / exp / div")
    show = lambda values: " / ".join(f"{v:.1f}" for v in values)
    for model, kind, card, true, why in rows():
        table.add_row(model, kind, show(PRINTED[model, kind]), show(arithmetic(card, kind, model != "LeViT-128")), show(arithmetic(true, kind)), why)
    console = Console(width=170)
    console.print(table)
    table = Table("counted", "softmax", "Taylor", title="Table IV: printed 0.50 -> 0.33 G; no set of operations gives both")
    table.add_row("all four linear layers", *(f"{gigamacs(p, True):.3f} G" for p in ("dense", "vitality()")))
    table.add_row("without the output projection", *(f"{gigamacs(p, False):.3f} G" for p in ("dense", "vitality()")))
    console.print(table)


if __name__ == "__main__":
    main()
