"""What Linformer's attention costs (Table VI of ViTALiTy: exponentials and divisions)."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.linformer.config import Linformer, places
from foveate.workload import BlockWork, Effect, replace_scores


def effect(config: Linformer, card: Card) -> Effect:
    """Another attention in the chosen blocks, and its E and F: a column for each place and one for tokens without a place."""
    params = sum(2 * config.rank * (places(card, block) + 1) for block in config.chosen(card))
    return Effect(change=partial(replace_scores, blocks=config.blocks, scores=partial(attention, config)), params=params)


def attention(config: Linformer, block: BlockWork) -> list[Operation]:
    """E K and F V, then softmax attention over them; where tokens are missing, the columns of those that live are gathered."""
    (queries, keys, maps), r = block.maps, config.rank
    d, e = block.card.head_dim, block.card.value_dim
    step = partial(block.operation, times=maps)
    gathered = [] if block.whole else [block.operation("gather", "attn.columns", m=keys, n=2 * r)]
    return gathered + [
        step("gemm", "attn.k_mixtures", m=r, n=d, k=keys), step("gemm", "attn.v_mixtures", m=r, n=e, k=keys),
        step("gemm", "attn.qk", m=queries, n=r, k=d), step("softmax", "attn.softmax", m=queries, n=r), step("gemm", "attn.av", m=queries, n=e, k=r),
    ]  # fmt: skip
