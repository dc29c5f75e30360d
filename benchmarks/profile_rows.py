"""Where OpenVINO's time goes, for the plan and for the dense model: from its own performance counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from token_rows import PLAN, Asked, backbone
from torch import Tensor, nn

import foveate as fv
from foveate.runtime.exported import mirrored
from foveate.runtime.loading import synthetic_images
from foveate.runtime.openvino_backend import HINTS, openvino_graph

CALLS = 10
LEAST = 0.01
"""Kinds of operations that take a smaller share of both models' time stand together."""


def sections(asked: Asked, say: Callable[[str], None]) -> list[str]:
    """A section of markdown for each batch size; one that cannot be profiled says why."""
    made = []
    for batch in asked.batches:
        try:
            made.append(_section(asked, batch))
        except Exception as error:  # noqa: BLE001  (the table stands without it)
            made.append(f"## Where the time goes, batch {batch}\n\nNot profiled: {type(error).__name__}: {error}".replace("\n", " ")[:400])
        say(made[-1])
    return made


def _section(asked: Asked, batch: int) -> str:
    base = backbone(asked.model)
    images = synthetic_images(fv.adapt(base, fv.Plan()).card, batch)
    dense, plan = (kinds_ms(fv.adapt(base, fv.Plan.parse(text)), images) for text in ("dense", PLAN))
    whole = {"dense": sum(dense.values()), "plan": sum(plan.values())}
    large = [kind for kind, _ in (dense | plan).most_common() if dense[kind] > LEAST * whole["dense"] or plan[kind] > LEAST * whole["plan"]]
    line = lambda name, one, other: f"| {name} | {one:.3f} | {other:.3f} | {other - one:+.3f} |"
    rows = [line(kind, dense[kind], plan[kind]) for kind in large]
    left = [sum(ms for kind, ms in one.items() if kind not in large) for one in (dense, plan)]
    head = [f"## Where the time goes: OpenVINO bf16, batch {batch}", "",
            f"Milliseconds a call by OpenVINO's performance counters, mean of {CALLS} calls, by kind of operation and of kernel; with counters on, calls last longer.",
            "", "| operation | dense | plan | difference |", "|-|-|-|-|"]
    return "\n".join([*head, *rows, line("others", *left), line("all", *whole.values())])


def kinds_ms(model: nn.Module, images: Tensor, precision: str = "bf16") -> Counter[str]:
    """Milliseconds a call of a model's OpenVINO graph by kind of operation, such as "FullyConnected (brgemm_avx512_bf16)"."""
    import openvino

    graph = openvino_graph(model, mirrored(images), single=False)
    graph.reshape({0: list(images.shape)})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision], "PERF_COUNT": True,
                "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    found: Counter[str] = Counter()
    request.infer({0: images.numpy()})
    for _ in range(CALLS):
        request.infer({0: images.numpy()})
        for one in request.get_profiling_info():
            if one.real_time.total_seconds():
                found[f"{one.node_type} ({one.exec_type})"] += 1000 * one.real_time.total_seconds() / CALLS
    return found
