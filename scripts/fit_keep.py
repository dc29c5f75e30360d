"""Finds keep ratios that give a wanted cost: the presets of SPViT, and its two baselines at equal MACs.

The papers print costs, not keep ratios (those came out of their search), so ours are fitted: r, r^2, r^3 after the three
selectors, each relative to the patch tokens of its own stage. Run: python scripts/fit_keep.py
"""

from collections.abc import Callable

from foveate import Plan, Random, SPViT, Structure, count

REDUCTION = 2.65 / 4.5989  # of DeiT-S: used where the paper prints no cost of its own
REDUCTION_PIT = 1.13 / 1.395  # of PiT-XS
# model: (after, wanted GMACs, where they are from)
TARGETS = {
    "deit_tiny_patch16_224": ((3, 6, 9), 0.90, "Table 6"),
    "deit_small_patch16_224": ((3, 6, 9), 2.65, "Table 5"),
    "deit_256_patch16_224": ((3, 6, 9), 1.30, "section 5.1, ~1.3"),
    "deit_320_patch16_224": ((3, 6, 9), 1.30, "section 5.1, ~1.3"),
    "lvvit_s": ((4, 8, 12), 6.551 * REDUCTION, "DeiT-S's reduction of 42.4 %"),
    "lvvit_m": ((5, 10, 15), 12.678 * REDUCTION, "DeiT-S's reduction of 42.4 %"),
    "pit_ti_224": ((1, 5, 10), 0.699 * REDUCTION_PIT, "PiT-XS's reduction of 19.0 %"),
    "pit_xs_224": ((1, 5, 10), 1.13, "Table 3"),
    "pit_s_224": ((1, 5, 10), 2.22, "Table 3"),
    "swin_tiny_patch4_window7_224": ((2, 4, 10), 3.47, "Table 3"),
    "swin_small_patch4_window7_224": ((2, 4, 22), 6.35, "Table 3"),
}


def geometric(rate: float, stages: int) -> tuple[float, ...]:
    """r, r^2, ..., rounded as they are written down."""
    return tuple(round(rate**stage, 3) for stage in range(1, stages + 1))


def fitted(model: str, plan_of: Callable[[float], Plan], gmacs: float) -> tuple[Plan, float]:
    """The plan whose cost comes nearest to `gmacs`, and that cost in GMACs; cost grows with the rate."""
    low, high = 0.05, 0.999
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if count(model, plan_of(middle)).macs < gmacs * 1e9 else (low, middle)
    costs = {rate: count(model, plan_of(rate)).macs / 1e9 for rate in (low, high)}
    best = min(costs, key=lambda rate: abs(costs[rate] - gmacs))
    return plan_of(best), costs[best]


def spvit(after: tuple[int, ...]) -> Callable[[float], Plan]:
    """From a rate to SPViT behind the blocks `after`."""
    return lambda rate: Plan([SPViT(after, geometric(rate, len(after)))])


def main() -> None:
    """Prints one line for each backbone: the plan, its cost, and how far it is from the wanted one."""
    for model, (after, gmacs, source) in TARGETS.items():
        plan, cost = fitted(model, spvit(after), gmacs)
        print(f"{model:30} {plan}  {cost:.3f} GMACs, wanted {gmacs:.3f} ({source}), {100 * (cost / gmacs - 1):+.2f} %")
    for model, gmacs in (("deit_tiny_patch16_224", 0.90), ("deit_small_patch16_224", 2.64)):
        baselines = {
            "random": lambda rate: Plan([Random((3, 6, 9), geometric(rate, 3))]),
            "structure": lambda rate: Plan([Structure(round(rate, 3))]),
        }
        for plan_of in baselines.values():
            plan, cost = fitted(model, plan_of, gmacs)
            print(f"{model:30} {plan}  {cost:.3f} GMACs, wanted {gmacs:.3f} (Table 6), {100 * (cost / gmacs - 1):+.2f} %")


if __name__ == "__main__":
    main()
