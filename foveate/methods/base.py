"""What every method's settings have in common: a frozen value that checks itself and goes to JSON and back."""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.errors import FoveateError


@dataclass(frozen=True)
class Method:
    """Settings of one method; subclasses are frozen dataclasses that validate in `__post_init__`.

    `name` is the word used in plans, on the command line and for the method's own parameters.
    `data_dependent` says whether the cost differs from image to image; `prunes`, whether tokens are removed; `inside`, whether
    that happens inside a block, between attention and MLP; `skips`, whether `attention` names blocks to run without any.
    """

    name: ClassVar[str]
    prunes: ClassVar[bool] = False
    inside: ClassVar[bool] = False
    skips: ClassVar[bool] = False

    @property
    def data_dependent(self) -> bool:
        return False

    def validate(self, card) -> None:
        """Raises FoveateError if these settings do not fit the backbone that `card` describes."""

    def attention(self) -> tuple[int, ...] | str:
        """The 1-based blocks whose attention this method skips or replaces; "all" means those that no other method names."""
        return ()

    def stages(self, card) -> tuple[int, ...]:
        """The 1-based blocks behind which, or inside which, this method prunes tokens, in order."""
        return getattr(self, "after", ()) if self.prunes else ()

    def watches(self, card) -> tuple[int, ...]:
        """The 1-based blocks in which this method reads what the class token attends to (see Run.watched)."""
        return ()

    def exits(self, card) -> tuple[int, ...]:
        """The 1-based blocks behind which an image may leave with an answer; the last block always is one where there are others."""
        return ()

    def default(self, field: str) -> Any:
        """What `field` is where nobody says otherwise, given the other settings."""
        return getattr(type(self), field, None)

    def explicit(self) -> dict[str, Any]:
        """The settings that are not at their defaults."""
        return {k: v for k, v in self.to_dict().items() if k != "method" and v != _plain(self.default(k))}

    def but(self, **changes) -> "Method":
        """The same settings with some changed; those at their defaults follow."""
        return self.from_dict(self.explicit() | changes)

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.name} | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Method":
        """Builds the settings from keyword values; unknown or missing keys raise FoveateError."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            raise FoveateError(
                given=f"{cls.name}(...) with {', '.join(map(repr, unknown))}",
                allowed=f"settings of {cls.name}: {', '.join(fields)}",
                do="remove or correct that setting (`foveate methods` lists them all)",
            )
        missing = [n for n, f in fields.items()
                   if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in settings]
        if missing:
            raise FoveateError(
                given=f"{cls.name}(...) without {', '.join(missing)}",
                allowed=f"{cls.name}({', '.join(fields)})",
                do=f"add {missing[0]}=...",
            )
        return cls(**settings)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def wrong(method: type[Method] | Method, field: str, value: Any, allowed: str, do: str) -> typing.NoReturn:
    """Raises the FoveateError for one setting of a method."""
    raise FoveateError(given=f"{method.name}({field}={value!r})", allowed=allowed, do=do)


def check_blocks(method: Method, field: str) -> None:
    """Turns `field` into a tuple of strictly increasing 1-based block numbers."""
    value = getattr(method, field)
    value = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
    good = isinstance(value, (list, tuple)) and len(value) > 0 and all(
        isinstance(b, int) and not isinstance(b, bool) and b >= 1 for b in value)
    if not good or any(b >= c for b, c in zip(value, value[1:])):
        wrong(method, field, value, "increasing block numbers, counted from 1 as in the papers, such as [3, 6, 9]",
              "give each block once, in increasing order")
    object.__setattr__(method, field, tuple(value))


def check_chosen_blocks(method: Method) -> None:
    """Turns `blocks` into a tuple of 1-based block numbers, unless it is "all"."""
    if isinstance(method.blocks, str) and method.blocks != "all":
        wrong(method, "blocks", method.blocks, '"all" or block numbers such as [4, 5, 6]', 'write blocks="all" or a list')
    if method.blocks != "all":
        check_blocks(method, "blocks")


def check_ratios(method: Method, field: str, count: int) -> None:
    """Turns `field` into a tuple of `count` keep ratios in (0, 1]."""
    value = getattr(method, field)
    value = (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    good = isinstance(value, (list, tuple)) and all(
        isinstance(r, (int, float)) and not isinstance(r, bool) and 0 < r <= 1 for r in value)
    if not good:
        wrong(method, field, value, "ratios in (0, 1], such as [0.7, 0.49, 0.343]",
              "give the share of patch tokens to keep, not to drop, as numbers between 0 and 1")
    if len(value) != count:
        wrong(method, field, list(value), f"{count} ratios, one for each of the {count} stages", "give one ratio a stage")
    object.__setattr__(method, field, tuple(float(r) for r in value))


def check_bool(method: Method, field: str) -> None:
    value = getattr(method, field)
    if not isinstance(value, bool):
        wrong(method, field, value, "true or false", "write True or False (true or false in JSON)")


def check_weight(method: Method, field: str) -> None:
    """Turns `field` into a finite number >= 0."""
    value = getattr(method, field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        wrong(method, field, value, "a number >= 0", "give a finite number, 1 is usual")
    object.__setattr__(method, field, float(value))


def check_whole(method: Method, field: str, least: int, do: str, most: int | None = None) -> None:
    """Raises unless `field` is a whole number from `least` to `most`."""
    value = getattr(method, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        wrong(method, field, value, f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}", do)


def check_depth(method: Method, field: str, card, last: int) -> None:
    """Raises if a block number of `field` lies beyond `last`, the last block where it makes sense."""
    beyond = [b for b in getattr(method, field) if b > last]
    if beyond:
        wrong(method, field, list(getattr(method, field)), f"blocks 1...{last} of {card.name}, which has {card.depth} blocks",
              f"replace {', '.join(map(str, beyond))} by an earlier block")


def check_pairs(method: Method, field: str, card) -> None:
    """Raises where tokens do not all see one another: what replaces softmax by a sum over all keys has no way to leave out pairs."""
    if card.family == "swin":
        wrong(method, field, getattr(method, field), f"backbones whose tokens all see one another; the shifted windows of {card.name} forbid pairs",
              "use a backbone of the ViT, Eva, LV-ViT, PiT, LeViT or MobileViT family")


def kept_count(keep: float, tokens: int) -> int:
    """Patch tokens that a keep ratio leaves of `tokens`: rounded half up, at least one."""
    return max(1, math.floor(keep * tokens + 0.5))


def check_stages(method: Method, card) -> None:
    """Raises unless the stages of (`after`, `keep`) fit `card`: inside its depth, behind its widening blocks, and fewer tokens at every stage."""
    check_depth(method, "after", card, card.depth - 1)
    steady = max((number for number, block in enumerate(card.blocks, 1) if block.entry), default=0)
    if early := [block for block in method.after if block < steady]:
        wrong(method, "after", list(method.after), f"blocks {steady}...{card.depth - 1} of {card.name}: up to block {steady} IRET's blocks widen the "
              "tokens by what an image shows at their places, and a package token has none",
              f"replace {', '.join(map(str, early))} by blocks from {steady} on, the first of constant width")
    previous: dict[int, float] = {}
    for block, keep in zip(method.after, method.keep):
        tokens = card.tokens_after(block)
        if keep >= previous.get(tokens, 1.1):
            wrong(method, "keep", list(method.keep), "ratios that decrease from stage to stage (each relative to all patch tokens)",
                  f"make the ratio after block {block} smaller than {previous[tokens]}")
        previous[tokens] = keep
