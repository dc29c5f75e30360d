"""Dense execution: the same weights with nothing dropped, for batches at which dropping does not pay."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from foveate.adaptive import AdaptiveModel
from foveate.adoption import replan
from foveate.plan import Plan

AGREES = 0.9
"""Share of images for which dense execution must give the plan's answer, where no labels say which of the two is right."""


@dataclass(frozen=True)
class Fallback:
    """What runs instead of a plan, with both figures.

    plan: what was asked for. plan_ms, dense_ms: an image, in the same rounds. same_top1: share of images with the plan's answer.
    """

    plan: str
    plan_engine: str
    plan_ms: float
    dense_ms: float
    same_top1: float

    def __str__(self) -> str:
        return (
            f"{self.plan} takes {self.plan_ms:.2f} ms an image in {self.plan_engine}, all tokens {self.dense_ms:.2f}: run with nothing dropped, "
            f"with the plan's answer for {self.same_top1:.0%} of the images"
        )


def dense_form(model) -> AdaptiveModel | None:
    """The model whose every decision is "keep": its weights under the plan without what drops tokens or lets images leave early.

    That is what training in the masked form would compute were all decisions 1, and the last exit answered; not the model that the plan
    was adapted onto, whose weights it no longer has. What replaces or skips attention stays: weights that were trained for it mean
    nothing without. Of a method that drops by a threshold and does more than dropping, the threshold becomes 0. None where nothing is
    dropped, and for cascades, whose efforts are models of their own.
    """
    plan = getattr(model, "plan", None)
    if not isinstance(model, AdaptiveModel) or not any(method.prunes or method.exits(model.card) for method in plan.methods):
        return None
    kept = []
    for method in plan.methods:
        if method.prunes and any(field.name == "threshold" for field in fields(method)):
            kept.append(replace(method, threshold=0.0))
        elif not method.prunes and not method.exits(model.card):
            kept.append(method)
    return replan(model, Plan(kept)).eval()
