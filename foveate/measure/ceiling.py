"""The most multiply-accumulates a second that this machine reaches in one large product of matrices: what a model's speed is a share of."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from foveate.card import cache_folder
from foveate.files import write_atomic
from foveate.machine import package_versions, processor

try:
    import openvino
    from openvino import opset13
except ImportError:  # an extra: without it there is no ceiling for int8
    openvino = None

FORM = 1
SIZE, CHAIN = 2048, 4
"""Rows and columns of all matrices, and how many int8 products follow one another, so that the first rounding to 8 bits weighs little."""
CALLS = 7
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gemm_ceilings(precisions: Iterable[str] = ("fp32", "bf16", "int8"), kept: bool = True) -> dict[str, float]:
    """Giga multiply-accumulates a second, by precision; one that nothing here computes in is left out.

    fp32 and bf16 by torch: the better of its own linear and one packed for oneDNN. int8 by OpenVINO.
    kept: a machine that is busy now has reached more before: the most that was ever measured here counts.
    """
    path = _file({"form": FORM, "size": SIZE, "threads": torch.get_num_threads()})
    before = _read(path) if kept else {}
    able = [precision for precision in precisions if precision in DTYPES or openvino is not None]
    now = {precision: int8_gmacs(SIZE) if precision == "int8" else torch_gmacs(SIZE, DTYPES[precision]) for precision in able}
    found = before | {precision: max(value, before.get(precision, 0.0)) for precision, value in now.items()}
    if kept:
        try:
            write_atomic(path, lambda file: file.write_text(json.dumps(found)))
        except OSError:
            pass
    return {precision: found[precision] for precision in able}


@torch.inference_mode()
def torch_gmacs(size: int, dtype: torch.dtype) -> float:
    """Of x W^T in torch, x and W [size, size]."""
    x, weight = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    forms = [lambda: torch.nn.functional.linear(x, weight)]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, size)
        forms.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return max(size**3 / 1e9 / _least_seconds(form) for form in forms)


def int8_gmacs(size: int) -> float:
    """Of products of 8-bit matrices in OpenVINO, each result rounded to 8 bits for the next."""
    images = opset13.parameter([size, size], np.float32)
    flow = images
    dice = np.random.default_rng(0)
    for _ in range(CHAIN):
        flow = opset13.fake_quantize(flow, *(np.float32(end) for end in (-8, 8, -8, 8)), 256)
        weight = opset13.constant(dice.integers(-127, 128, (size, size), dtype=np.int8))
        scaled = opset13.multiply(opset13.convert(weight, np.float32), np.float32(1 / (127 * size**0.5)))
        flow = opset13.matmul(flow, scaled, False, True)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(openvino.Model([flow], [images]), "CPU", settings).create_infer_request()
    given = {0: dice.standard_normal((size, size), dtype=np.float32)}
    return CHAIN * size**3 / 1e9 / _least_seconds(lambda: request.infer(given, share_inputs=True, share_outputs=True))


def _least_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _read(path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _file(settings: dict):
    """Where the ceilings of one processor and setting are kept."""
    key = json.dumps([processor(), package_versions(("torch", "openvino")), settings], sort_keys=True)
    return cache_folder().parents[1] / "ceilings" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
