"""bench --all: every engine that takes part, dense models, plans and peers, made one by one; what cannot be made says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveate.cli.answer import waiting
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from foveate.adaptive import AdaptiveModel

DENSE, PLAN, PEER = "dense", "plan", "peer"
EAGER = "timm-eager"
"""timm's own model as most users run it: nothing of foveate in it."""


@dataclass(eq=False)
class Candidate:
    """One model in one backend and precision. kind: "dense", "plan" or "peer". run: images -> logits. agreement: with eager float32."""

    kind: str
    model: AdaptiveModel
    backend: str
    precision: str
    run: Callable[[Tensor], Any]
    max_batch: int | None = None
    agreement: str = ""

    @property
    def plan(self) -> str:
        return "dense" if self.kind == DENSE else str(self.model.plan)

    @property
    def name(self) -> str:
        return f"{self.plan}, {self.backend} {self.precision}"


def candidates(
    models: Sequence[tuple[str, AdaptiveModel]], backends: Sequence[str], precisions: Sequence[str], images: Tensor, threads: int | None,
    tolerance: float | None = None,
) -> tuple[list[Candidate], dict[str, str]]:  # fmt: skip
    """The candidates, timm's eager model first, and what is left out with the reason: "plan, backend precision" -> text.

    models: (kind, model), the dense one first. backends, precisions: names; no precision stands for all that a backend has for a model.
    tolerance: as of `load_engine`.
    Raises FoveateError where no plan can be made at all.
    """
    from foveate.runtime import load_engine
    from foveate.runtime.maker import precisions_of

    made, left_out = [Candidate(DENSE, models[0][1], EAGER, "fp32", _eager(models[0][1]))], {}
    for kind, model in models:
        pairs = [(backend, precision) for backend in backends for precision in precisions or precisions_of(backend, model)]
        for backend, precision in pairs:
            name = f"{'dense' if kind == DENSE else model.plan}, {backend} {precision}"
            try:
                with waiting(f"preparing {name}"):
                    engine = load_engine(model, backend, precision, images, threads=threads, tolerance=tolerance)
            except FoveateError as error:
                left_out[name] = error.given
                continue
            made.append(Candidate(kind, model, backend, precision, engine, engine.max_batch, str(engine.agreement)))
    if all(one.kind != PLAN for one in made) and any(kind == PLAN for kind, _ in models):
        raise FoveateError(f"no backend that runs the plan ({'; '.join(left_out.values())})", "a backend and a precision that it runs in",
                           "leave out --backend and --precision, or take --backend torch")
    return made, left_out


def able(made: list[Candidate], batch: int, left_out: dict[str, str]) -> list[Candidate]:
    """The candidates that take so many images at once; the others are noted in `left_out`."""
    for one in made:
        if one.max_batch is not None and batch > one.max_batch:
            left_out[f"{one.name}, batch {batch}"] = f"takes {one.max_batch} image at once"
    return [one for one in made if one.max_batch is None or batch <= one.max_batch]


def _eager(model: AdaptiveModel) -> Callable[[Tensor], Any]:
    """timm's own model in eager float32."""
    import torch

    from foveate.adoption import backbone_of

    base = backbone_of(model).eval()
    device = next(base.parameters()).device

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return base(images.to(device)).to(images.device)

    return run
