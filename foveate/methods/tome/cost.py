"""What ToMe saves, tokens in every later step, and what it costs: comparing keys, and means as products."""

from functools import partial

from foveate.card import Card
from foveate.methods.tome.config import ToMe
from foveate.workload import Effect, Stage, Workload


def effect(config: ToMe, card: Card) -> Effect:
    """Stages between attention and MLP that merge `r` of the patches that are there, at most half of them."""
    stages = tuple(Stage(block, partial(left, r=config.r), False, lambda patches, dropped: [], inside=True) for block in config.stages(card))
    return Effect(stages, partial(_merge, config))


def left(patches: int, r: int) -> int:
    """Patches that are left when `r` of `patches` merge into others: never more than half of them leave."""
    return patches - min(r, patches // 2)


def _merge(config: ToMe, work: Workload) -> None:
    for block in work.blocks:
        if block.number not in config.stages(work.card):
            continue
        rows, operations, _ = block.inner
        if merged := block.tokens - rows:
            half = block.patches // 2
            operations += [
                block.operation("gemm", "merge.match", m=block.patches - half, n=half, k=block.card.head_dim),
                block.operation("gather", "merge.gather", m=block.tokens, n=block.card.dim),
                block.operation("gemm", "merge.mean", m=rows, n=block.card.dim, k=merged),
            ]
