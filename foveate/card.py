"""The Card: what a backbone looks like in numbers, enough to check plans and to count operations without loading torch.

It does not live in foveate.backbones because importing that package registers models with timm, which loads torch.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from foveate.errors import FoveateError
from foveate.files import write_atomic
from foveate.ledger import Operation

SHIPPED = Path(__file__).parent / "cards"
LINEARS = ("projections", "outputs", "mlp", "entry")
FORM = 2
"""Number of the cards' form, raised where older cards in a cache would be read wrongly."""
# Children and parameters of a block that only its attention branch uses, under the names that all families give them.
ATTENTION_BRANCH = ("norm1", "attn", "ls1", "gamma_1", "drop_path1")
# Families whose blocks are attention, then MLP, over tokens that all see one another.
PLAIN = ("vit", "eva", "lvvit", "pit", "iret")
# Families in which a token can neither leave nor join, and why.
FIXED_TOKENS = {
    "levit": "whose BatchNorm goes over all tokens and whose score biases belong to the places of a full grid",
    "mobilevit": "whose convolutions between the blocks read the whole map",
}


@dataclass(frozen=True)
class Part:
    """One layer of a backbone whose number of rows depends on the tokens: rows x inputs times inputs x outputs.

    name: its place below the block or the head, such as "attn.qkv" or "head.fc".
    rows: what its rows are, words joined by "+": "tokens" (prefix+patches+packages), "prefix", "patches", "packages", "grid"
        (every place of the patch grid, live or not), "image" (one row), "queries" (of a block's projections: the tokens that ask).
    times: groups or heads. kind: as in Operation ("norm" touches rows x outputs elements).
    along: the dimension of the product that the rows are, "m", or "k" for a weighted sum over them.
    """

    name: str
    inputs: int
    outputs: int
    rows: str = "tokens"
    times: int = 1
    kind: str = "gemm"
    along: str = "m"


@dataclass(frozen=True)
class Window:
    """Attention inside windows of height x width tokens, `count` of them (padded grid), shifted or not."""

    height: int
    width: int
    count: int
    shifted: bool = False

    @property
    def area(self) -> int:
        """Tokens of one window."""
        return self.height * self.width


@dataclass(frozen=True)
class Transition:
    """What happens between a block and a coarser next one: Swin's patch merging, PiT's pooling convolution.

    A place of the new grid reads a kernel x kernel field of the old one, `stride` apart, `padding` beyond its edge.
    parts: their rows are those of the new grid. operations: what runs in full whatever the tokens do, such as convolutions of several
    sizes; origins below the block.
    """

    kernel: int
    stride: int
    padding: int
    parts: tuple[Part, ...]
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class BlockCard:
    """One block: widths, its linears, the grid of its patch tokens, its window and what follows it.

    heads: score maps of the attention; head_dim: width of a query and key; value_dim: width of a value.
    projections: the linears that make queries, keys and values (and a gate, where there is one).
    outputs: the linear behind the attention (several in blocks with parallel attentions; `heads` counts all their heads).
    mlp: the MLP's linears; `hidden` is the width of its activation.
    queries: patch tokens that ask and live on where the attention itself subsamples (LeViT); None: all of `grid`.
    groups: token sets that attend among themselves only (MobileViT's pixel groups).
    batch_norm: a BatchNorm behind each linear and an activation before `outputs`, in place of norms before attention and MLP (LeViT).
    attention_params: parameters that only the attention branch has (ATTENTION_BRANCH).
    entry: what runs on the live tokens before the block and makes them as wide as `dim` (IRET's focus); no part of the block's own cost.
    """

    dim: int
    heads: int
    head_dim: int
    value_dim: int
    hidden: int
    grid: tuple[int, int]
    projections: tuple[Part, ...]
    outputs: tuple[Part, ...]
    mlp: tuple[Part, ...]
    window: Window | None = None
    transition: Transition | None = None
    queries: int | None = None
    groups: int = 1
    batch_norm: bool = False
    attention_params: int = 0
    entry: tuple[Part, ...] = ()

    @property
    def coarsens(self) -> bool:
        """Whether a coarser grid follows."""
        return self.transition is not None or self.queries is not None

    @property
    def patches(self) -> int:
        """Patch tokens of this block when nothing is pruned."""
        return self.grid[0] * self.grid[1]

    @property
    def linears(self) -> tuple[Part, ...]:
        """Every linear of the block in running order."""
        return (*self.projections, *self.outputs, *self.mlp)


@dataclass(frozen=True)
class Card:
    """A backbone: `blocks` between the fixed operations of the `stem` and the parts of the `head`.

    family: "vit", "eva", "pit", "swin", "lvvit", "levit" or "mobilevit". image_size: (height, width) in pixels. prefix_tokens: class, distillation and
    register tokens. pool: what the head reads ("token", "avg", "map", ...). params: of the whole dense model.
    """

    name: str
    family: str
    image_size: tuple[int, int]
    in_chans: int
    num_classes: int
    prefix_tokens: int
    pool: str
    params: int
    stem: tuple[Operation, ...]
    blocks: tuple[BlockCard, ...]
    head: tuple[Part, ...]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def block(self, number: int) -> BlockCard:
        """The block with this 1-based number; FoveateError beyond the depth."""
        if not 1 <= number <= self.depth:
            raise FoveateError(
                given=f"block {number} of {self.name}",
                allowed=f"blocks 1 to {self.depth}",
                do="count blocks from 1, as the papers do",
            )
        return self.blocks[number - 1]

    def next_block(self, number: int) -> BlockCard:
        """The block that reads what stands after block `number` and its transition; the last block itself at the end."""
        self.block(number)
        return self.blocks[min(number, self.depth - 1)]

    def grid_after(self, number: int) -> tuple[int, int]:
        """Patch grid (height, width) after block `number` and its transition: where a selector "after" it stands."""
        return self.next_block(number).grid

    def tokens_after(self, number: int) -> int:
        """Patch tokens of the grid after block `number` and its transition, before any pruning."""
        return self.next_block(number).patches

    def dim_after(self, number: int) -> int:
        """Width of the tokens after block `number` and its transition, before a following block that widens them."""
        following = self.next_block(number)
        return self.block(number).dim if following.entry else following.dim

    def heads_after(self, number: int) -> int:
        """Heads that the tokens after block `number` and its transition are split into."""
        return self.next_block(number).heads

    def stage_of(self, number: int) -> int:
        """The 1-based stage of block `number`: one more than the transitions before it."""
        self.block(number)
        return 1 + sum(block.coarsens for block in self.blocks[: number - 1])

    def check_tokens(self, what: str) -> None:
        """Raises FoveateError where tokens can neither leave nor join; `what` says what would do so, such as "a plan that prunes tokens"."""
        if self.family in FIXED_TOKENS:
            raise FoveateError(
                given=f"{what} on {self.name}, {FIXED_TOKENS[self.family]}",
                allowed="methods that replace or skip attention, and the empty plan",
                do="use a backbone of the ViT, Eva, LV-ViT, PiT or Swin family, or leave that out of the plan",
            )

    def check_inside(self, what: str, blocks: Iterable[int] = ()) -> None:
        """Raises FoveateError where nothing can be done between attention and MLP of a block; `what` as in `check_tokens`.

        blocks: 1-based; not the last one of a stage, whose tokens would have to be counted on two grids.
        """
        if self.family not in PLAIN:
            raise FoveateError(f"{what} on {self.name}", "backbones of the families " + ", ".join(PLAIN), "use a plain Vision Transformer, or leave that out of the plan")
        if ends := [number for number in blocks if number <= self.depth and self.block(number).coarsens]:
            raise FoveateError(f"{what} on {self.name} in block {ends[0]}, behind which a stage ends", "blocks within a stage", f"leave out block {ends[0]}")

    def check_class_token(self, what: str) -> None:
        """Raises FoveateError where no class token asks among all patches; `what` as in `check_tokens`."""
        if self.family not in PLAIN or not self.prefix_tokens:
            why = f"whose tokens attend inside windows or without a class token ({self.family})" if self.prefix_tokens else "which has no class token"
            raise FoveateError(f"{what} on {self.name}, {why}", "backbones of the families " + ", ".join(PLAIN) + " with a class token",
                               "use such a backbone, or leave that out of the plan")

    def check_skippable(self, blocks: Iterable[int]) -> None:
        """Raises FoveateError for a 1-based block in `blocks` that has no residual around its attention and cannot do without."""
        for number in blocks:
            if self.block(number).queries is not None:
                able = [n for n, block in enumerate(self.blocks, 1) if block.queries is None]
                raise FoveateError(
                    given=f"block {number} of {self.name} without attention: it is what shrinks the grid, and no residual leads around it",
                    allowed=f"blocks {', '.join(map(str, able))}",
                    do=f"leave block {number} out of the skipped blocks",
                )

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal Card; runs of equal blocks are written once."""
        form = asdict(self)
        form["stem"] = [_sparse(o, Operation) for o in form["stem"]]
        form["head"] = [_sparse(p, Part) for p in form["head"]]
        form["blocks"] = []
        for index, block in enumerate(self.blocks):
            if index and block == self.blocks[index - 1]:
                form["blocks"][-1]["repeat"] += 1
            else:
                form["blocks"].append({"repeat": 1} | _block_form(block))
        return json.dumps(form, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The Card that `to_json` wrote; raises FoveateError where the text is not one."""
        try:
            form = json.loads(text)
            blocks = [_block(dict(b)) for b in form["blocks"] for _ in range(b["repeat"])]
            shared: dict[BlockCard, BlockCard] = {}
            return cls(**form | {
                "image_size": tuple(form["image_size"]),
                "stem": tuple(Operation(**o) for o in form["stem"]),
                "head": tuple(Part(**p) for p in form["head"]),
                "blocks": tuple(shared.setdefault(block, block) for block in blocks),
            })
        except (ValueError, KeyError, TypeError) as error:
            raise FoveateError(
                given=f"a text that is no card ({type(error).__name__}: {error})",
                allowed="JSON as Card.to_json() writes it",
                do="make the card again: scripts/make_cards.py, or delete it from the cache",
            ) from error


def shipped_names() -> tuple[str, ...]:
    """Names of the backbones whose cards come with foveate."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def stored_card(name: str) -> Card | None:
    """The shipped or cached Card of a timm model name, or None; never loads torch."""
    if Path(name).name != name:
        return None
    for folder in (SHIPPED, cache_folder()):
        path = folder / f"{name}.json"
        try:
            return Card.from_json(path.read_text())
        except FoveateError:
            if folder == SHIPPED:
                raise
        except OSError:
            continue
    return None


def keep_card(card: Card, name: str) -> None:
    """Writes `card` to the user's cache, whole or not at all; a folder that cannot be written is no error."""
    try:
        write_atomic(cache_folder() / f"{name}.json", lambda path: path.write_text(card.to_json()))
    except OSError:
        return


def cache_folder() -> Path:
    """Where cards of further models are kept: $FOVEATE_CACHE, or foveate in the user's cache folder, one folder a timm version."""
    root = os.environ.get("FOVEATE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate"
    try:
        timm = version("timm")
    except PackageNotFoundError:
        timm = "none"
    return Path(root) / "cards" / f"timm-{timm}-{FORM}"


def _sparse(form: dict[str, Any], kind: type) -> dict[str, Any]:
    defaults = {name: field.default for name, field in kind.__dataclass_fields__.items()}
    return {name: value for name, value in form.items() if value != defaults[name]}


def _block_form(block: BlockCard) -> dict[str, Any]:
    form = asdict(block)
    for name in LINEARS:
        form[name] = tuple(_sparse(part, Part) for part in form[name])
    if block.transition:
        form["transition"]["parts"] = [_sparse(part, Part) for part in form["transition"]["parts"]]
        form["transition"]["operations"] = tuple(_sparse(o, Operation) for o in form["transition"]["operations"])
        form["transition"] = _sparse(form["transition"], Transition)
    return _sparse(form, BlockCard)


def _block(form: dict[str, Any]) -> BlockCard:
    form.pop("repeat")
    parts = {name: tuple(Part(**p) for p in form.get(name, ())) for name in LINEARS}
    if form.get("window"):
        parts["window"] = Window(**form["window"])
    if form.get("transition"):
        inner = tuple(Part(**p) for p in form["transition"]["parts"])
        fixed = tuple(Operation(**o) for o in form["transition"].get("operations", ()))
        parts["transition"] = Transition(**form["transition"] | {"parts": inner, "operations": fixed})
    return BlockCard(**form | parts | {"grid": tuple(form["grid"])})
