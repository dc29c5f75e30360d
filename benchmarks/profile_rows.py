"""Where OpenVINO's time goes, for the plan and for the dense model: from its own performance counters."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable

import torch
from token_rows import PLAN, Asked, backbone
from torch import Tensor

import foveate as fv
from foveate.runtime.exported import mirrored
from foveate.runtime.int8 import quantised_graph
from foveate.runtime.loading import synthetic_images
from foveate.runtime.openvino_backend import HINTS, fast_rest, openvino_graph

CALLS = 10
LEAST = 0.01
"""Kinds of operations that take a smaller share of both models' time stand together."""


def sections(asked: Asked, say: Callable[[str], None]) -> list[str]:
    """A section of markdown for each batch size; one that cannot be profiled says why."""
    made = []
    for precision, batch in ((precision, batch) for precision in ("int8", "bf16") for batch in asked.batches):
        try:
            made.append(_section(asked, batch, precision))
        except Exception as error:  # noqa: BLE001  (the table stands without it)
            why = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            made.append(f"## Where the time goes: OpenVINO {precision}, batch {batch}\n\nNot profiled: {why}")
        say(made[-1])
    return made


def _section(asked: Asked, batch: int, precision: str) -> str:
    base = backbone(asked.model)
    images = synthetic_images(fv.adapt(base, fv.Plan()).card, batch)
    dense, plan = (kinds_ms(fv.adapt(base, fv.Plan.parse(text)), images, precision) for text in ("dense", PLAN))
    whole = {"dense": sum(dense.values()), "plan": sum(plan.values())}
    large = [kind for kind, _ in (dense | plan).most_common() if dense[kind] > LEAST * whole["dense"] or plan[kind] > LEAST * whole["plan"]]
    line = lambda name, one, other: f"| {name} | {one:.3f} | {other:.3f} | {other - one:+.3f} |"
    rows = [line(kind, dense[kind], plan[kind]) for kind in large]
    left = [sum(ms for kind, ms in one.items() if kind not in large) for one in (dense, plan)]
    head = [f"## Where the time goes: OpenVINO {precision}, batch {batch}", "",
            f"Milliseconds a call by OpenVINO's performance counters, median of {CALLS} calls, by kind of operation and of kernel; with counters on, calls last longer.",
            "", "| operation | dense | plan | difference |", "|-|-|-|-|"]
    return "\n".join([*head, *rows, line("others", *left), line("all", *whole.values())])


def kinds_ms(model: fv.AdaptiveModel, images: Tensor, precision: str) -> Counter[str]:
    """Milliseconds a call of a model's OpenVINO graph by kind of operation, such as "FullyConnected (brgemm_avx512_bf16)"."""
    import openvino

    graph = openvino_graph(model, mirrored(images), single=False)
    rest = precision
    if precision == "int8":
        graph, rest = quantised_graph(graph, images, [method.name for method in model.plan.methods]), fast_rest()
    graph.reshape({0: list(images.shape)})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[rest], "PERF_COUNT": True,
                "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    request.infer({0: images.numpy()})
    calls = []
    for _ in range(CALLS):
        request.infer({0: images.numpy()})
        calls.append(Counter())
        for one in request.get_profiling_info():
            calls[-1][f"{one.node_type} ({one.exec_type})"] += 1000 * one.real_time.total_seconds()
    return Counter({kind: statistics.median(call[kind] for call in calls) for kind in calls[0] if any(call[kind] for call in calls)})
