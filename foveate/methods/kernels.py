"""What attention with a kernel phi(q) phi(k) in place of exp(q k) costs; shared by methods that differ in phi."""

from foveate.ledger import Operation
from foveate.workload import BlockWork


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
