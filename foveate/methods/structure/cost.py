"""What structure pruning costs: linears that read fewer input features, for every token."""

from functools import partial

from foveate.card import Card
from foveate.methods.structure.config import Structure
from foveate.workload import Effect, Workload


def effect(config: Structure, card: Card) -> Effect:
    """The linears of the chosen blocks read `keep` of their inputs; the attention between them is as large as before."""
    return Effect(change=partial(_narrow, config))


def _narrow(config: Structure, work: Workload) -> None:
    for block in work.blocks:
        if config.applies_to(block.number):
            block.inputs_kept *= config.keep
