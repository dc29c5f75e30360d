"""What early exits cost: a classifier behind each block that an image reaches. What they save follows from where it leaves."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.earlyexit.config import EarlyExit
from foveate.workload import BlockWork, Effect, Workload


def effect(config: EarlyExit, card: Card) -> Effect:
    """The exits' norms and linears. Their origins are head_exit.N, no part of block N: include="blocks" counts as IRET does, without heads."""
    params = sum(2 * width + (width + 1) * card.num_classes for width in map(card.dim_after, config.heads(card)))
    return Effect(change=partial(_add_exits, config), params=params)


def _add_exits(config: EarlyExit, work: Workload) -> None:
    for number in config.heads(work.card):
        if number <= len(work.blocks):
            block = work.blocks[number - 1]
            block.exit = exit_operations(work.card, number, _pooled(work.card, block))


def exit_operations(card: Card, number: int, pooled: int = 0) -> list[Operation]:
    """The exit behind block `number`. pooled: tokens in a weighted mean before it; 0 for the class token or a plain mean."""
    origin, width = f"head_exit.{number}", card.dim_after(number)
    mean = [Operation("gemm", f"{origin}.pool", m=1, n=width, k=pooled)] if pooled else []
    return [*mean, Operation("norm", f"{origin}.norm", m=1, n=width), Operation("gemm", f"{origin}.fc", m=1, n=card.num_classes, k=width)]


def _pooled(card: Card, block: BlockWork) -> int:
    """Tokens that the weighted mean behind `block` goes over: all live ones where some were pruned; unpruned, the plain mean costs no product."""
    if card.pool == "token" or (block.whole and not block.inner):
        return 0
    live = block.inner[0] if block.inner else block.tokens
    return min(live, block.prefix + block.packages + card.tokens_after(block.number))
