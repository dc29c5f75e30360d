"""What methods that put another attention in the place of softmax have in common: settings and operations, without torch."""

from __future__ import annotations

from foveate.ledger import Operation
from foveate.methods.base import Method, check_chosen_blocks, check_depth, check_pairs
from foveate.workload import BlockWork


class Replacement(Method):
    """Settings of such a method; subclasses have a field `blocks`: 1-based blocks, or "all" that no other method of the plan names."""

    def __post_init__(self):
        check_chosen_blocks(self)

    def attention(self) -> tuple[int, ...] | str:
        return self.blocks

    def validate(self, card) -> None:
        if self.blocks != "all":
            check_depth(self, "blocks", card, card.depth)
        check_pairs(self, "blocks", card)

    def chosen(self, card) -> tuple[int, ...]:
        """The blocks by number; for "all" every block, also one that another method of the plan takes."""
        return tuple(range(1, card.depth + 1)) if self.blocks == "all" else self.blocks


def kernel_attention(block: BlockWork, features: int) -> list[Operation]:
    """phi(Q) (phi(K)^T V) / phi(Q) phi(K)^T 1 of every head, for phi with `features` entries that are there already."""
    queries, keys, maps = block.maps
    e = block.card.value_dim
    return [
        block.operation("gemm", "attn.context", m=features, n=e, k=keys, times=maps),
        block.operation("sum", "attn.k_sum", m=keys, n=features, times=maps),
        block.operation("gemm", "attn.denominator", m=queries, n=1, k=features, times=maps),
        block.operation("gemm", "attn.numerator", m=queries, n=e, k=features, times=maps),
        block.operation("divide", "attn.ratio", m=queries, n=e, times=maps),
    ]
