"""What fixed sparse attention costs on a general-purpose processor: all of softmax attention, and the mask."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.vitcod.config import ViTCoD
from foveate.workload import BlockWork, Effect, replace_scores, softmax_attention


def effect(config: ViTCoD, card: Card) -> Effect:
    """The chosen blocks' attention with a mask; the masks are no parameters."""
    return Effect(change=partial(replace_scores, blocks=config.blocks, scores=masked_attention))


def masked_attention(block: BlockWork) -> list[Operation]:
    """All scores, the mask on them, their softmax and all of A V: what runs wherever there are no sparse products.

    Hardware made for it (ViTCoD's) would run the kept tenth of the products at sparsity 0.9. Where tokens are missing, the pairs of
    those that live are gathered first.
    """
    queries, keys, maps = block.maps
    qk, *rest = softmax_attention(block)
    gathered = [] if block.whole else [block.operation("gather", "attn.pairs", m=queries, n=keys, times=maps)]
    return [*gathered, qk, block.operation("elementwise", "attn.mask", m=queries, n=keys, times=maps), *rest]
