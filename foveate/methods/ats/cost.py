"""What ATS saves: tokens that neither the MLP nor later blocks see, in each image other ones; sampling costs next to nothing."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.ats.config import ATS
from foveate.workload import Effect, Stage, package_operations


def effect(config: ATS, card: Card) -> Effect:
    """Stages between attention and MLP that keep what each image draws, and the class token's rows that it is drawn from."""
    stages = tuple(Stage(after, None, False, partial(_operations, card, after), inside=True) for after in config.after)
    return Effect(stages, watches=config.watches(card))


def _operations(card: Card, after: int, patches: int, dropped: int) -> list[Operation]:
    return package_operations(f"blocks.{after}", patches, dropped, card.block(after).dim, package=False)
