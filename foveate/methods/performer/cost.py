"""What Performer's attention costs (Table VI of ViTALiTy: exponentials, divisions, additions)."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.kernels import kernel_attention
from foveate.methods.performer.config import Performer
from foveate.workload import BlockWork, Effect, replace_scores


def effect(config: Performer, card: Card) -> Effect:
    """Another attention in the chosen blocks; its random directions are no parameters."""
    return Effect(change=partial(replace_scores, blocks=config.blocks, scores=partial(attention, config)))


def attention(config: Performer, block: BlockWork) -> list[Operation]:
    """The random features of queries and keys, then the linear attention; |q|^2 cancels and is not computed."""
    queries, keys, maps = block.maps
    d = block.card.head_dim
    r = config.features_of(d)
    step = partial(block.operation, times=maps)
    return [
        step("gemm", "attn.q_features.project", m=queries, n=r, k=d), step("exp", "attn.q_features.exp", m=queries, n=r),
        step("gemm", "attn.k_features.project", m=keys, n=r, k=d),
        step("elementwise", "attn.k_features.square", m=keys, n=d), step("sum", "attn.k_features.norm", m=d, n=keys),
        step("add", "attn.k_features.subtract", m=keys, n=r), step("exp", "attn.k_features.exp", m=keys, n=r),
        *kernel_attention(block, r),
    ]  # fmt: skip
