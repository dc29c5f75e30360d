"""What the Linear Transformer's attention costs (Table VI of ViTALiTy: exponentials, divisions, additions)."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.kernels import kernel_attention
from foveate.methods.lineartransformer.config import LinearTransformer
from foveate.workload import BlockWork, Effect, replace_scores


def effect(config: LinearTransformer, card: Card) -> Effect:
    """Another attention in the chosen blocks; no parameters."""
    return Effect(change=partial(replace_scores, blocks=config.blocks, scores=attention))


def attention(block: BlockWork) -> list[Operation]:
    """phi(x) = elu(x) + 1 of queries and keys, one exponential and one addition an entry, then the linear attention."""
    queries, keys, maps = block.maps
    d = block.card.head_dim
    features = [block.operation(kind, f"attn.{side}_features.{kind}", m=rows, n=d, times=maps)
                for side, rows in (("q", queries), ("k", keys)) for kind in ("exp", "add")]
    return features + kernel_attention(block, d)
