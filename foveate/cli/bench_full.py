"""bench --all: from the models that take part to their rows, verdicts and sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.cli.answer import Answer, waiting
from foveate.cli.bench_engines import DENSE, PEER, PLAN, able, candidates
from foveate.cli.bench_table import memory, rows, sheet, timed, verdicts
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.adaptive import AdaptiveModel
    from foveate.plan import Plan
    from foveate.report import Row

AGAINST = ("all", "same", "dense-best")
AUTO = "auto"
SLOW_TO_COMPILE = "torch-compile"
UNTRAINED = 2.0
"""How far logits of a model without training may differ from eager float32's, as a share of the largest."""


def listed(words: Sequence[str] | None) -> list[str]:
    """The names that an option was given, also several with commas between them."""
    return list(dict.fromkeys(word.strip() for text in words or () for word in text.split(",") if word.strip()))


def check_full(target, plans: Sequence[str | None], against: str | None, breakdown: bool) -> None:
    """Raises FoveateError for what --all does not do."""
    from foveate.cli.targets import single_plan_of

    if against is not None and against not in AGAINST:
        raise FoveateError(f"--against {against}", ", ".join(AGAINST), "choose one of these, such as --against dense-best")
    if breakdown:
        raise FoveateError("--breakdown with several plans, backends or precisions", "--breakdown with one plan, in torch", "leave one of them out")
    for plan in plans:
        single_plan_of(target, plan)


def compare(
    answer: Answer, model: AdaptiveModel, plans: Sequence[Plan], images: Tensor, batches: Sequence[int], backends: Sequence[str], precisions: Sequence[str],
    peers: bool, against: str, rounds: tuple[int, int, int | None], trained: bool,
) -> tuple[list[list[Row]], str]:  # fmt: skip
    """Times everything, fills `answer`, and returns the rows of the report's table and its sentence.

    model: under the first of `plans`. backends, precisions: none or "auto" for all. rounds: repetitions, warm-up, threads. trained: the model
    is a run's; weights of no training decide narrowly, so that roundings move their logits far, which says nothing against an engine.
    """
    from foveate.machine import machine
    from foveate.measure.ceiling import gemm_ceilings
    from foveate.runtime import installed_backends, load_engine

    models = _models(model, plans, peers, images)
    chosen = backends if backends and AUTO not in backends else [name for name in installed_backends() if name != SLOW_TO_COMPILE]
    unknown = next((name for name in chosen if name not in installed_backends()), None)
    if unknown:
        load_engine(model, unknown, "fp32", images[:1])  # says what is wrong with it
    made, left_out = candidates(models, chosen, [] if AUTO in precisions else precisions, images[: max(batches)], rounds[2], None if trained else UNTRAINED)
    with waiting("measuring the most that a product of matrices reaches here"):
        ceilings = gemm_ceilings(sorted({one.precision for one in made})) if not next(model.parameters()).is_cuda else {}
    costs, found = _costs(models, images), []
    for batch in dict.fromkeys(batches):
        here = able(made, batch, left_out)
        found += rows(here, timed(here, images, batch, *rounds[:2]), costs, ceilings, against, memory(here, images, batch))
    said = verdicts(found)
    first = min((row for row in found if row["batch"] == batches[0]), key=lambda row: (row["kind"] != PLAN or row["plan"] != str(plans[0]), row["latency_ms"]))
    answer.data |= first | {"results": found, "verdicts": said, "left_out": left_out, "gemm_gmac_per_s": ceilings, "machine": machine()}
    answer.shown += [_card(answer.data), *(sheet(found, batch) for batch in dict.fromkeys(batches))]
    answer.shown += [f"left out: {name}: {why}" for name, why in left_out.items()]
    sentences = [f"{plan}, batch {batch}: {text}" for plan, by in said.items() for batch, text in by.items()]
    answer.shown += sentences
    return [_report_rows(found)], "; ".join(sentences)


def _models(model: AdaptiveModel, plans: Sequence[Plan], peers: bool, images: Tensor) -> list[tuple[str, AdaptiveModel]]:
    from foveate.adoption import replan
    from foveate.peers import peers_at
    from foveate.plan import Plan

    dense, given = Plan(), [plan for plan in dict.fromkeys(plans) if plan.methods]
    models = [(DENSE, replan(model, dense)), *((PLAN, model if plan == model.plan else replan(model, plan)) for plan in given)]
    if peers and not given:
        raise FoveateError("--peers without a plan", "a plan whose MACs ToMe and EViT are to have", "name one with --plan")
    equal = peers_at(model.card, _macs(models[1][1], images)[0]) if peers else {}
    models += [(PEER, replan(model, plan)) for plan in equal.values() if plan not in given]
    return [(kind, one.eval()) for kind, one in models]


def _costs(models: Sequence[tuple[str, AdaptiveModel]], images: Tensor) -> dict[str, tuple[float, int]]:
    """MACs of the mean image and parameters, by plan."""
    return {"dense" if kind == DENSE else str(model.plan): _macs(model, images) for kind, model in models}


def _macs(model: AdaptiveModel, images: Tensor) -> tuple[float, int]:
    import torch

    from foveate.counting import count

    with torch.inference_mode():
        trace = model.traced(images.to(next(model.parameters()).device))[1] if model.plan.data_dependent else None
    ledger = count(model, trace=trace)
    return ledger.macs, ledger.params


def _card(data: dict[str, Any]) -> str:
    card, most = data["machine"], data["gemm_gmac_per_s"]
    ceilings = ", ".join(f"{precision} {value:.0f}" for precision, value in most.items())
    return (f"{data['model']} on {card['cpu_model']}, {card['cpu_cores']} cores, load {card['load_average_1min']}"
            + (f"; one large product of matrices reaches, in GMAC/s: {ceilings}" if ceilings else ""))


def _report_rows(found: Sequence[dict[str, Any]]) -> list[Row]:
    from foveate.measure.clock import Spread, verdict
    from foveate.report import Row

    made = []
    for plan, backend, precision in dict.fromkeys((row["plan"], row["backend"], row["precision"]) for row in found):
        here = [row for row in found if (row["plan"], row["backend"], row["precision"]) == (plan, backend, precision)]
        triples = lambda key: {row["batch"]: (row[key], row[f"{key}_low"], row[f"{key}_high"]) for row in here}
        speedup = {} if plan == "dense" else triples("speedup")
        judged = {"speedup": speedup, "verdict": {batch: verdict(Spread(*three)) for batch, three in speedup.items()}}
        made.append(Row(plan, here[0]["macs"], here[0]["params"], latency_ms=triples("latency_ms"), backend=backend, precision=precision, **judged))
    return made
