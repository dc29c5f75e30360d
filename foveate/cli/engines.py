"""--backend and --precision: the fastest engine of a run for predict and eval, checked and calibrated on the run's own images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import bar, note, waiting
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.runtime import Engine

CHECKED_ON = 64

Backend = Annotated[
    str | None,
    typer.Option(metavar="BACKEND", show_default=False, help="Run it in an engine: auto (the fastest here), torch, openvino, onnxruntime. Default: torch eager."),
]
Precision = Annotated[
    str | None, typer.Option(metavar="PRECISION", show_default=False, help="Of the engine's products: auto (the fastest that agrees), fp32, bf16 or int8.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the table that --backend auto chose from.")]
Fallback = Annotated[bool, typer.Option("--fallback", help="Drop nothing where that is at least as fast here and gives the same answers.")]


def engine_of(target, plan, model, batch: int, backend: str | None, precision: str | None, fallback: bool = False) -> Engine:
    """The engine of a run; what "auto" chose for its own plan stays in its folder.

    batch: images a call. backend, precision: "auto" where only the other is given.
    """
    from foveate.cli.targets import plan_of
    from foveate.runtime import load_engine

    images, labels = _own_images(target, model)
    own = target.folder is not None and not target.embedded and plan == plan_of(target, None)
    with waiting("choosing an engine"):
        return load_engine(model, backend or "auto", precision or "auto", images, batch=batch, labels=labels, fallback=fallback, run=target.folder if own else None)


def explained(engine: Engine) -> list[str]:
    """What was chosen, from what, and what it stands in for."""
    fallback = [str(engine.fallback)] if engine.fallback else []
    return [engine.choice.table() if engine.choice else f"{engine.name}: {engine.agreement}", *fallback]


def described(engine: Engine) -> dict[str, Any]:
    """The engine in a JSON object: the contract's keys and what was passed over."""
    found = {"backend": engine.backend, "precision": engine.precision, "agreement": str(engine.agreement), "passed_over": engine.passed_over}
    return found | {"fallback": str(engine.fallback) if engine.fallback else None}


def predictions(engine: Engine, inputs: list[Tensor]) -> list[tuple[list[float], list[int], None]]:
    """Probabilities of all classes, image by image; an engine tells no tokens."""
    import torch

    size, answers = engine.max_batch or 32, []
    with bar("predicting") as progress:
        for start in range(0, len(inputs), size):
            answers += [(chances, [], None) for chances in engine(torch.stack(inputs[start : start + size])).softmax(-1).tolist()]
            progress(len(answers), len(inputs))
    return answers


def accuracy(engine: Engine, images, batch_size: int) -> dict[str, Any]:
    """How often the engine is right on the same images, and how it was made."""
    from foveate.train.evaluate import evaluate

    with bar(f"evaluating in {engine.name}") as progress:
        result = evaluate(engine, images, engine.max_batch or batch_size, "cpu", progress)
    return described(engine) | {"accuracy_percent_engine": result["accuracy_percent"]}


def _own_images(target, model) -> tuple[Tensor | None, Tensor | None]:
    """Training images of the run with their classes, or none of either where its data are unknown here."""
    from foveate.cli.images import images_for

    if not (target.embedded or target.record().get("data")):
        return None, None
    try:
        found = images_for(target, model, None, None, "train", limit=CHECKED_ON)
    except FoveateError as error:
        note(f"the engine is checked on synthetic images: {error.given}")
        return None, None
    batch = found.batch(range(len(found)))
    return batch.images, batch.labels
