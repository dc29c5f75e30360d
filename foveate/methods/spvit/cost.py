"""What SPViT costs: blocks with fewer tokens, selectors on the patches they score, and package tokens."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.base import kept_count
from foveate.methods.spvit.config import SPViT
from foveate.workload import Effect, Stage, package_operations


def effect(config: SPViT, card: Card) -> Effect:
    """Stages that keep `keep` of the patch tokens (select="topk") or what each image's selectors say, and the selectors."""
    stages = []
    for after, keep in zip(config.after, config.keep, strict=True):
        kept = kept_count(keep, card.tokens_after(after)) if config.select == "topk" else None
        stages.append(Stage(after, kept, config.package, partial(_stage_operations, card, after, config.package)))
    params = sum(selector_params(card.dim_after(after), card.heads_after(after)) for after in config.after)
    return Effect(stages=tuple(stages), params=params)


def selector_layers(dim: int, heads: int) -> dict[str, tuple[int, int, int]]:
    """The linears of one selector as name -> (inputs, outputs, how many of them): Eqs. 1-3 per head, Eq. 5 once.

    dim: width C of the tokens; heads: H, so that each head has d = C / H channels. Local and global features share one linear
    (Eqs. 1 and 2), as the parameter counts of Table 5 force.
    """
    width = dim // heads
    half, hidden, quarter, squeezed = width // 2, max(1, width // 2), max(1, width // 4), max(1, heads // 2)
    return {
        "feature": (width, half, heads),
        "hidden1": (2 * half, hidden, heads),
        "hidden2": (hidden, quarter, heads),
        "score": (quarter, 2, heads),
        "squeeze": (heads, squeezed, 1),
        "excite": (squeezed, heads, 1),
    }


def selector_params(dim: int, heads: int) -> int:
    """Parameters of one selector with its LayerNorms and biases: 29,145 for DeiT-S (Table 5)."""
    norms = 2 * dim // heads * heads
    return norms + sum((inputs + 1) * outputs * count for inputs, outputs, count in selector_layers(dim, heads).values())


def selector_operations(origin: str, patches: int, dim: int, heads: int) -> list[Operation]:
    """One selector scoring `patches` tokens; its mean over kept tokens (Eq. 2) is a sum and costs no product."""
    norm = Operation("norm", f"{origin}.norm", m=patches, n=dim)
    layers = selector_layers(dim, heads).items()
    return [norm, *(Operation("gemm", f"{origin}.{n}", m=patches, n=o, k=i, times=count) for n, (i, o, count) in layers)]


def _stage_operations(card: Card, after: int, package: bool, patches: int, dropped: int) -> list[Operation]:
    origin, dim = f"blocks.{after}", card.dim_after(after)
    scored = selector_operations(f"{origin}.selector", patches, dim, card.heads_after(after))
    return scored + package_operations(origin, patches, dropped, dim, package)
