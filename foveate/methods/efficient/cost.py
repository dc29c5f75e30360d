"""What Efficient Attention costs (Table VI of ViTALiTy: exponentials and divisions)."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.efficient.config import Efficient
from foveate.workload import BlockWork, Effect, replace_scores


def effect(config: Efficient, card: Card) -> Effect:
    """Another attention in the chosen blocks; no parameters."""
    return Effect(change=partial(replace_scores, blocks=config.blocks, scores=attention))


def attention(block: BlockWork) -> list[Operation]:
    """Two softmaxes, over the channels of each query and over the keys of each channel, and two products of every head."""
    queries, keys, maps = block.maps
    d, e = block.card.head_dim, block.card.value_dim
    return [
        block.operation("softmax", "attn.q_softmax", m=queries, n=d, times=maps),
        block.operation("softmax", "attn.k_softmax", m=d, n=keys, times=maps),
        block.operation("gemm", "attn.context", m=d, n=e, k=keys, times=maps),
        block.operation("gemm", "attn.numerator", m=queries, n=e, k=d, times=maps),
    ]
