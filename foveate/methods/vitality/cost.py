"""What ViTALiTy costs: Algorithm 1 as written, step by step, the sparse branch where inference keeps it, and the distillation token."""

from functools import partial

from foveate.card import Card
from foveate.ledger import Operation
from foveate.methods.vitality.config import ViTALiTy
from foveate.workload import BlockWork, Effect, Workload, replace_scores, softmax_attention


def effect(config: ViTALiTy, card: Card) -> Effect:
    """Another attention in the chosen blocks, and one more token and classifier for modes with "+kd"."""
    token = config.adds_token(card)
    width = card.blocks[-1].dim
    params = card.blocks[0].dim + (width + 1) * card.num_classes if token else 0
    return Effect(change=partial(_change, config, token), params=params, prefix=int(token))


def taylor_attention(block: BlockWork) -> list[Operation]:
    """The six steps of Algorithm 1 of ViTALiTy for every head; multiplications, additions and divisions are those of Eqs. 1-3.

    The paper counts 7nd additions beside the products. Six can be named; the seventh is taken to be step 4's n sqrt(d), added
    to n x d elements. Steps that Algorithm 1 could skip (the sum of centred keys is 0) are counted, because it is written so.
    """
    queries, keys, maps = block.maps
    d, e = block.card.head_dim, block.card.value_dim
    step = partial(block.operation, times=maps)
    return [
        step("sum", "attn.k_mean.sum", m=keys, n=d), step("divide", "attn.k_mean", m=1, n=d), step("add", "attn.k_centred", m=keys, n=d),
        step("gemm", "attn.context", m=d, n=e, k=keys),
        step("sum", "attn.k_sum", m=keys, n=d), step("sum", "attn.v_sum", m=keys, n=e),
        step("gemm", "attn.denominator", m=queries, n=1, k=d), step("add", "attn.denominator.add", m=queries, n=d),
        step("gemm", "attn.numerator", m=queries, n=e, k=d), step("add", "attn.numerator.add", m=queries, n=e),
        step("divide", "attn.ratio", m=queries, n=e),
    ]  # fmt: skip


def sparse_attention(block: BlockWork) -> list[Operation]:
    """The predictor's product and softmax in front of softmax attention: what a machine without sparse products runs."""
    queries, keys, maps = block.maps
    predictor = [
        block.operation("gemm", "attn.predictor", m=queries, n=keys, k=block.card.head_dim, times=maps),
        block.operation("softmax", "attn.predictor.softmax", m=queries, n=keys, times=maps),
    ]
    return predictor + softmax_attention(block)


def _both(block: BlockWork) -> list[Operation]:
    return taylor_attention(block) + sparse_attention(block)


_SCORES = {"vitality": taylor_attention, "lowrank": taylor_attention, "sparse": sparse_attention, "lowrank+sparse": _both}


def _change(config: ViTALiTy, token: bool, work: Workload) -> None:
    if scores := _SCORES.get(config.attention_kind):
        replace_scores(work, config.blocks, scores)
    if token:
        last = work.blocks[-1]
        work.tail.append(Operation("gemm", "head.dist", m=1, n=work.card.num_classes, k=last.card.dim))
