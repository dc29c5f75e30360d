"""The workload of one image: what each block runs after every method of a plan has had its say, and its operations.

A method's cost room answers one question, `effect(config, card) -> Effect`: where tokens are pruned (`stages`), what else changes
in the blocks (`change`), and how many parameters it adds. Rooms never see one another; their effects meet here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from foveate.card import BlockCard, Card, Part
from foveate.errors import FoveateError
from foveate.ledger import Operation
from foveate.methods.base import kept_count


@dataclass
class BlockWork:
    """What one block runs for one image.

    number: 1-based. prefix, patches, packages: live tokens of each kind that the block works on.
    whole: no pruning stage has run before, so that the block runs as timm wrote it.
    inputs_kept: share of the input features that the block's linears read.
    watched: a method reads what the class token attends to, which costs one query.
    scores: makes the operations between the projections and the output linear from this record (softmax attention unless a
        method brings another); None where the attention is skipped.
    inner: (live tokens that reach the MLP, what methods run before it, package tokens among them), where tokens are pruned inside the block.
    exit: the classifier of an early exit behind the block and its transition.
    after: what methods run behind the block, its transition and its exit.
    """

    number: int
    card: BlockCard
    prefix: int
    patches: int
    packages: int = 0
    whole: bool = True
    inputs_kept: float = 1.0
    watched: bool = False
    scores: Callable[["BlockWork"], list[Operation]] | None = field(default_factory=lambda: softmax_attention)
    inner: tuple[int, list[Operation], int] | None = None
    exit: list[Operation] = field(default_factory=list)
    after: list[Operation] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Live tokens, prefix and packages included."""
        return self.prefix + self.patches + self.packages

    @property
    def queries(self) -> int:
        """Tokens that ask: all, unless the attention subsamples its grid."""
        return self.tokens if self.card.queries is None else self.prefix + self.card.queries + self.packages

    @property
    def maps(self) -> tuple[int, int, int]:
        """(queries, keys, how many) of the block's score maps: one map a head, and a window or token group where there are such.

        A package token in a window is a key; as a query it sees itself only.
        """
        if self.card.window:
            return self.card.window.area, self.card.window.area + self.packages, self.card.heads * self.card.window.count
        groups = self.card.groups
        return self.queries // groups, self.tokens // groups, self.card.heads * groups

    def origin(self, name: str) -> str:
        """Where the part `name` of this block runs."""
        return f"blocks.{self.number}.{name}"

    def operation(self, kind: str, name: str, **shape: float) -> Operation:
        """An operation of this block, with the dimensions m, n, k and times of `shape`."""
        return Operation(kind, self.origin(name), **shape)


@dataclass(frozen=True)
class Stage:
    """A place where patch tokens are pruned.

    after: 1-based block behind which it stands (and behind that block's transition). inside: it stands between that block's attention
        and its MLP instead.
    kept: keeps how many of the grid's patch tokens, or, a function, how many of those present; None where it depends on the image.
    package: whether a package token is made of what is dropped.
    operations: from (patches present, dropped) to what pruning itself costs.
    """

    after: int
    kept: int | Callable[[int], int] | None
    package: bool
    operations: Callable[[int, int], list[Operation]]
    inside: bool = False


@dataclass(frozen=True)
class Seen:
    """What one image did in a pass, as far as it was recorded; hashable, so that equal images are counted once.

    tokens: live tokens after each stage. block_tokens: those that each block worked on, or empty.
    present, kept: patch tokens before and after each stage, or empty. exit: block of the exit taken.
    """

    tokens: tuple[int, ...] = ()
    block_tokens: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    exit: int | None = None


@dataclass
class Workload:
    """The blocks of `card` as one image runs them; `bound` says that some token count is only an upper bound.

    An image that left early has no block behind its exit, and not the model's own head. tail: what methods run behind the head.
    """

    card: Card
    blocks: list[BlockWork]
    seen: Seen | None = None
    bound: bool = False
    tail: list[Operation] = field(default_factory=list)

    def operations(self) -> tuple[Operation, ...]:
        """Everything that runs, in order."""
        operations = list(self.card.stem)
        for block in self.blocks:
            operations += [part_operation(part, _counts(block), f"embed.{block.number}.") for part in block.card.entry]
            operations += block_operations(block, self.card.next_block(block.number))
        if len(self.blocks) < self.card.depth:
            return tuple(operations)
        return (*operations, *head_operations(self.card, self.blocks[-1]), *self.tail)


@dataclass(frozen=True)
class Effect:
    """What one method does to the work: see the module's docstring. prefix: prefix tokens that it adds. watches: as Method.watches says."""

    stages: tuple[Stage, ...] = ()
    change: Callable[[Workload], None] | None = None
    params: int = 0
    prefix: int = 0
    watches: tuple[int, ...] = ()


def workload(card: Card, effects: Iterable[Effect] = (), seen: Seen | None = None) -> Workload:
    """The work of one image under `effects`; without `seen`, stages that depend on the image prune nothing.

    Raises FoveateError where `seen` does not fit the plan.
    """
    effects = tuple(effects)
    prefix = card.prefix_tokens + sum(effect.prefix for effect in effects)
    ran = card.blocks[: seen.exit] if seen and seen.exit else card.blocks
    blocks = [BlockWork(i + 1, block, prefix, block.patches) for i, block in enumerate(ran)]
    work = Workload(card, blocks, seen)
    _walk(work, all_stages(effects))
    for effect in effects:
        if effect.change:
            effect.change(work)
    _watch(work, {block for effect in effects for block in effect.watches})
    return work


def _watch(work: Workload, blocks: set[int]) -> None:
    """Marks the blocks whose class token is watched: where the attention asked for is skipped, the last one before (semantics.md 12)."""
    for number in blocks & {block.number for block in work.blocks}:
        next(block for block in reversed(work.blocks[:number]) if block.scores).watched = True


def all_stages(effects: Iterable[Effect]) -> list[Stage]:
    """The pruning stages of all methods in the order in which they run."""
    return sorted((stage for effect in effects for stage in effect.stages), key=lambda stage: (stage.after, not stage.inside))


def _walk(work: Workload, stages: list[Stage]) -> None:
    live, packages, seen, index = work.card.blocks[0].patches, 0, work.seen, 0
    for block in work.blocks:
        if seen and seen.block_tokens:
            live = seen.block_tokens[block.number - 1] - block.prefix - packages
        block.patches, block.packages, block.whole = live, packages, index == 0
        while index < len(stages) and stages[index].after == block.number and stages[index].inside:
            live, packages, operations = _staged(stages[index], index, live, block.prefix, packages, work)
            before = block.inner[1] if block.inner else []
            block.inner, index = (block.prefix + live + packages, before + operations, packages), index + 1
        if block.card.coarsens:
            # A merged token lives if any of its parts did: how many do depends on where the pruned ones lay.
            full = work.card.tokens_after(block.number)
            dead = live < block.card.patches
            work.bound |= dead and not (seen and (seen.present or seen.block_tokens))
            live = min(live, full) if dead else full
        left = seen and seen.exit == block.number < work.card.depth
        while index < len(stages) and stages[index].after == block.number and not left:
            live, packages, operations = _staged(stages[index], index, live, block.prefix, packages, work)
            block.after, index = block.after + operations, index + 1


def _staged(stage: Stage, index: int, live: int, prefix: int, packages: int, work: Workload) -> tuple[int, int, list[Operation]]:
    """(patches kept, packages there are then, what it costs) of the stage `index`."""
    if work.seen and work.seen.present:
        live = work.seen.present[index]
    kept, packed = _kept(stage, index, live, prefix + packages, work.seen, work.card)
    return kept, packages + packed, stage.operations(live, live - kept)


def _kept(stage: Stage, index: int, live: int, others: int, seen: Seen | None, card: Card) -> tuple[int, int]:
    """(patch tokens kept, package tokens made) by a stage before which `live` patches and `others` other tokens stand."""
    exact = stage.kept(live) if callable(stage.kept) else stage.kept
    if seen is None or not seen.tokens:
        kept = live if exact is None else min(live, exact)
        return kept, int(stage.package and kept < live)
    total = seen.tokens[index]
    if seen.kept:
        return seen.kept[index], total - others - seen.kept[index]
    fixed = exact is not None and exact < live
    # Where counts are all we know: one patch less and a package more looks like nothing pruned, and costs the same here.
    packed = int(stage.package and (fixed or total < others + live))
    kept = total - others - packed
    if not 1 <= kept <= live:
        low, high = others + 1 + packed, others + live
        raise FoveateError(
            given=f"{total} live tokens after stage {index + 1} (block {stage.after} of {card.name})",
            allowed=f"{low} to {high}, prefix and package tokens included",
            do="give the live tokens after each stage in order, as trace.tokens counts them",
        )
    return kept, packed


def package_operations(origin: str, patches: int, dropped: int, dim: int, package: bool) -> list[Operation]:
    """What leaving `dropped` of `patches` tokens out costs: moving the others together, and the package (Eq. 8 of SPViT).

    The weighted sum of the package runs over all `patches`, with weight 0 for those that stay.
    """
    moved = [Operation("gather", f"{origin}.package.gather", m=patches - dropped, n=dim)] if dropped else []
    summed = [Operation("gemm", f"{origin}.package.sum", m=1, n=dim, k=patches)] if dropped and package else []
    return moved + summed


def softmax_attention(block: BlockWork) -> list[Operation]:
    """Q K^T, softmax and A V of every head (and window)."""
    card, (queries, keys, maps) = block.card, block.maps
    return [
        block.operation("gemm", "attn.qk", m=queries, n=keys, k=card.head_dim, times=maps),
        block.operation("softmax", "attn.softmax", m=queries, n=keys, times=maps),
        block.operation("gemm", "attn.av", m=queries, n=card.value_dim, k=keys, times=maps),
    ]


def replace_scores(work: Workload, blocks: tuple[int, ...] | str, scores: Callable[[BlockWork], list[Operation]] | None) -> None:
    """Gives `blocks` another attention (None: none); "all" means those that still have softmax attention (semantics.md 13)."""
    for block in work.blocks:
        if block.scores is softmax_attention if blocks == "all" else block.number in blocks:
            block.scores = scores


def block_operations(block: BlockWork, following: BlockCard) -> list[Operation]:
    """Everything that one block runs, its transition and what methods put behind it included."""
    card, rows = block.card, block.queries
    operations = _attention_branch(block) if block.scores else []
    if block.inner:
        rows = block.inner[0]
        operations += block.inner[1]
    if not card.batch_norm:
        operations.append(block.operation("norm", "norm2", m=rows, n=card.dim))
    operations += _linears(block, card.mlp[:-1], rows)
    operations.append(block.operation("elementwise", "mlp.act", m=rows, n=card.hidden))
    operations += _linears(block, card.mlp[-1:], rows)
    if card.transition:
        counts = _left(block) | {"grid": following.patches}
        operations += [part_operation(part, counts, block.origin("")) for part in card.transition.parts]
        operations += [replace(operation, origin=block.origin(operation.origin)) for operation in card.transition.operations]
    return operations + block.exit + block.after


def _attention_branch(block: BlockWork) -> list[Operation]:
    card, window = block.card, block.card.window
    # A whole grid is padded to full windows before the projections; live tokens alone are not.
    rows, back = (window.area * window.count,) * 2 if window and block.whole else (block.tokens, block.queries)
    before = [] if card.batch_norm else [block.operation("norm", "norm1", m=block.tokens, n=card.dim)]
    act = [block.operation("elementwise", "attn.proj.act", m=back, n=card.heads * card.value_dim)] if card.batch_norm else []
    scores = block.scores(block) + (_class_row(block) if block.watched else [])
    return [*before, *_linears(block, card.projections, rows), *scores, *act, *_linears(block, card.outputs, back)]


def _class_row(block: BlockWork) -> list[Operation]:
    """The softmax of one query's scores, a head; where the attention spells its products out the row is there already and costs less."""
    heads, keys = block.card.heads, block.tokens
    return [
        block.operation("gemm", "class_row.qk", n=keys, k=block.card.head_dim, times=heads),
        block.operation("softmax", "class_row.softmax", n=keys, times=heads),
    ]


def head_operations(card: Card, last: BlockWork) -> list[Operation]:
    """What runs behind the last block."""
    counts, whole = _left(last), last.whole and not last.inner
    if not whole:
        # The packed head runs over all live tokens and gives those that do not count a weight of zero.
        counts |= {"patches": counts["tokens"], "packages": 0}
    operations = [part_operation(part, counts) for part in card.head]
    if not whole and card.pool in ("avg", "avgmax"):
        operations.insert(1, Operation("gemm", "head.pool", m=1, n=last.card.dim, k=counts["tokens"]))
    return operations


def _left(block: BlockWork) -> dict[str, int]:
    """The counts of the tokens that leave the block."""
    if not block.inner:
        return _counts(block)
    tokens, _, packages = block.inner
    return _counts(block) | {"patches": tokens - block.prefix - packages, "packages": packages, "tokens": tokens}


def _counts(block: BlockWork) -> dict[str, int]:
    kinds = {"prefix": block.prefix, "patches": block.patches, "packages": block.packages}
    return kinds | {"tokens": block.tokens, "grid": block.card.patches, "image": 1}


def part_operation(part: Part, counts: dict[str, int], place: str = "") -> Operation:
    """A part of the card as an operation, its rows taken from `counts`."""
    rows = sum(counts[word] for word in part.rows.split("+"))
    m, k = (rows, part.inputs) if part.along == "m" else (part.inputs, rows)
    return Operation(part.kind, place + part.name, m, part.outputs, 1 if part.kind == "norm" else k, part.times)


def _linears(block: BlockWork, parts: Iterable[Part], rows: int) -> list[Operation]:
    """Linears that read `rows` rows (those of "queries": the tokens that ask), each with the BatchNorm that may stand behind it."""
    operations, kept = [], block.inputs_kept
    for part in parts:
        m = block.queries if part.rows == "queries" else rows
        inputs = part.inputs if kept == 1 else kept_count(kept, part.inputs)
        operations.append(block.operation("gemm", part.name, m=m, n=part.outputs, k=inputs, times=part.times))
        if block.card.batch_norm:
            operations.append(block.operation("norm", f"norm.{part.name}", m=m, n=part.outputs))
    return operations
