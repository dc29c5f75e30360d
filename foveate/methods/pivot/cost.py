"""What PIVOT saves: the attention branches that it leaves out, with their norms and parameters."""

from functools import partial

from foveate.card import Card
from foveate.methods.pivot.config import PIVOT
from foveate.workload import Effect, Workload


def effect(config: PIVOT, card: Card) -> Effect:
    """Blocks without norm1, projections, scores and output linear; their parameters are not carried."""
    saved = sum(card.block(number).attention_params for number in config.skip)
    return Effect(change=partial(_leave_out, config), params=-saved)


def _leave_out(config: PIVOT, work: Workload) -> None:
    for block in work.blocks:
        if block.number in config.skip:
            block.scores = None
