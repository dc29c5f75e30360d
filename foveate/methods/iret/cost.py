"""What IRET saves: tokens that leave before the IRET layers, and sub-bands that nobody looks at."""

from dataclasses import replace
from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.iret.config import IRET
from foveate.workload import Effect, Stage, Workload, package_operations

PUBLISHED_PARAMS, PUBLISHED_MACS = 17.24e6, 3.535e9
"""Of IRET on DeiT-S: its parameters, and the dense cost that all rows of "Params used" in Table 1 of IRET are relative to."""


def effect(config: IRET, card: Card) -> Effect:
    """Stages before the IRET layers that keep what each image attends to, the rows that tell, and no embedding of unused sub-bands."""
    stages = tuple(Stage(after, None if threshold else card.tokens_after(after), False, partial(_operations, after, card.dim_after(after)))
                   for after, threshold in zip(config.stages(card), config.thresholds(card), strict=True))
    return Effect(stages, partial(_unsampled, config), watches=config.watches(card))


def parameters_used(macs: float, params: float = PUBLISHED_PARAMS, dense: float = PUBLISHED_MACS) -> float:
    """The paper's "parameters used" of a pass that costs `macs`: P_used = params * macs / dense (17.24 M * G / 3.535 in Table 1 of IRET).

    No parameter is left out when tokens are: the figure is the cost in another unit. params, dense: of the whole dense model.
    """
    return params * macs / dense


def _operations(after: int, dim: int, patches: int, dropped: int) -> list[Operation]:
    return package_operations(f"blocks.{after}", patches, dropped, dim, package=False)


def _unsampled(config: IRET, work: Workload) -> None:
    for number in config.layers(work.card)[config.bands(work.card):]:
        for block in work.blocks[number - 1 : number]:
            block.card = replace(block.card, entry=tuple(part for part in block.card.entry if part.name != "focus.embed"))
