"""Plans of other methods that cost as much as a given one: what a plan is to be compared with. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from foveate.card import Card
from foveate.counting import count
from foveate.errors import FoveateError
from foveate.methods.evit.config import EViT
from foveate.methods.tome.config import ToMe
from foveate.plan import Plan


def peers_at(card: Card, macs: float) -> dict[str, Plan]:
    """ToMe and EViT with the setting whose MACs are nearest to `macs`, by method; what a backbone does not allow is left out.

    ToMe's r is the same in all blocks. EViT keeps the same share of what is there, k, k^2 and k^3, in three blocks spread as the paper's 4, 7, 10 of 12.
    Raises FoveateError for MACs that are not below the dense model's.
    """
    dense = count(card).macs
    if not 0 < macs < dense:
        raise FoveateError(f"peers at {macs / 1e9:.2f} GMAC for {card.name}", f"more than 0 and less than the dense model's {dense / 1e9:.2f}",
                           "compare with a plan that removes tokens")
    after = tuple(sorted({min(card.depth, 1 + round(card.depth * stage / 4)) for stage in (1, 2, 3)}))
    made = {"tome": lambda r: Plan([ToMe(r=r)]), "evit": lambda percent: Plan([EViT(after=after, keep=_powers(percent / 1000, len(after)))])}
    ranges = {"tome": range(1, card.blocks[0].patches), "evit": range(1000, 19, -1)}
    found = {}
    for name, plan in made.items():
        try:
            found[name] = plan(_nearest(lambda value: count(card, plan(value)).macs, ranges[name], macs))
        except FoveateError:
            continue
    return found


def _powers(share: float, count: int) -> tuple[float, ...]:
    return tuple(round(share**power, 6) for power in range(1, count + 1))


def _nearest(cost: Callable[[int], float], values: range, wanted: float) -> int:
    """The value whose cost is nearest to `wanted`; costs fall along `values`."""
    low, high = 0, len(values) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(values[middle]) > wanted else (low, middle)
    return min((values[low], values[high]), key=lambda value: abs(cost(value) - wanted))
