"""What the settings of methods that put another attention in the place of softmax have in common."""

from __future__ import annotations

from foveate.errors import FoveateError
from foveate.methods.base import Method, check_chosen_blocks, check_depth, check_pairs


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
        """The blocks by number; for "all" every block (`Plan.settled` has left out those that other methods name)."""
        return tuple(range(1, card.depth + 1)) if self.blocks == "all" else self.blocks


def check_whole_grid(name: str, tokens, card, why: str) -> None:
    """Raises FoveateError unless the Tokens that enter block 1 are all patches of the card's own grid; `why` says what method `name` has for each."""
    (rows, columns), patches = card.blocks[0].grid, tokens.x.shape[1] - tokens.prefix
    if tuple(tokens.grid) != (rows, columns) or patches != rows * columns:
        raise FoveateError(f"{patches} patches of a {tokens.grid[0]}x{tokens.grid[1]} grid for {name} on {card.name}",
                           f"all {rows * columns} of {rows}x{columns}: {why}",
                           f"resize the images to {card.image_size[0]}x{card.image_size[1]} pixels, and create models with patch_drop_rate=0")
