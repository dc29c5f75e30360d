"""What random pruning costs: SPViT's stages without selectors."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.base import kept_count
from foveate.methods.random.config import Random
from foveate.workload import Effect, Stage, package_operations


def effect(config: Random, card: Card) -> Effect:
    """Stages that keep `keep` of the patch tokens, packages included, choosing for nothing."""
    return Effect(stages=tuple(
        Stage(after, kept_count(keep, card.tokens_after(after)), config.package,
              partial(_stage_operations, card, after, config.package))
        for after, keep in zip(config.after, config.keep, strict=True)
    ))


def _stage_operations(card: Card, after: int, package: bool, patches: int, dropped: int) -> list[Operation]:
    return package_operations(f"blocks.{after}", patches, dropped, card.dim_after(after), package)
