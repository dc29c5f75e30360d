"""What EViT saves: tokens that neither the MLP nor later blocks see; the class token's row and the fused token cost next to nothing."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.base import kept_count
from foveate.methods.evit.config import EViT
from foveate.workload import Effect, Stage, package_operations


def effect(config: EViT, card: Card) -> Effect:
    """Stages between attention and MLP that keep exact counts, and the class token's row that they look at."""
    stages = tuple(Stage(after, kept_count(keep, card.block(after).patches), config.fuse, partial(_operations, card, after, config.fuse), inside=True)
                   for after, keep in zip(config.after, config.keep, strict=True))
    return Effect(stages, watches=config.watches(card))


def _operations(card: Card, after: int, fuse: bool, patches: int, dropped: int) -> list[Operation]:
    return package_operations(f"blocks.{after}", patches, dropped, card.block(after).dim, fuse)
