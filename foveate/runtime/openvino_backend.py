"""OpenVINO as a backend: one conversion, then a graph of fixed shape for each batch size that is used."""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.quantised import quantised
from foveate.runtime.openvino_passes import simplify

try:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from openvino.passes import ConstantFolding, Manager
except ImportError:  # an extra: `installed_backends` leaves it out
    openvino = None

# Layers between FakeQuantize nodes run in integers whatever the hint says; it is for all the others. What was trained in 8 bits keeps
# them in float32: its logits are then those of the emulation.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
STATIC_GRAPHS = 8


def openvino_graph(model: nn.Module, images: Tensor | Sequence[Tensor], single: bool) -> "openvino.Model":
    """Convert a copy of `model`, in evaluation mode and float32, to an OpenVINO graph.

    images: [B, C, H, W] to trace with. They must not be those of the later check, or a decision frozen into the graph
    would pass unseen. Of a segment all that it takes, tensors [B, n, ...]. single: the graph takes one image (per-image
    token counts: n is free, too); otherwise any number.
    Raises FoveateError where an operation cannot be converted.

    The frontend is called directly: `openvino.convert_model` gives the same graph (equal logits) in three times the time
    and reports each conversion to a server.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", torch.float32)
    given = tuple(_on_cpu(tensor[: 1 if single else None]) for tensor in ([images] if isinstance(images, Tensor) else images))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer warns of every constant; the check at load is what counts
            traced = torch.jit.trace(twin, given, check_trace=False)
            decoder = TorchScriptPythonDecoder(traced, example_input=given)
            frontend = FrontEndManager().load_by_framework("pytorch")
            graph = frontend.convert(frontend.load(decoder))
            graph.reshape({at: _free(tensor, single) for at, tensor in zip(graph.inputs, given, strict=True)})
            simplify(graph)
        if quantised(model):
            # The ends of FakeQuantize ranges come as computations; OpenVINO goes over to integers only where they are constants.
            folding = Manager()
            folding.register_pass(ConstantFolding())
            folding.run_passes(graph)
    except FoveateError:
        raise
    except Exception as error:  # tracer and frontend raise whatever the traced code and its translation raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "aten::" in line), lines[0] if lines else "no reason given")
        raise FoveateError(
            given=f"a model that OpenVINO cannot convert ({type(error).__name__}: {reason[:200]})",
            allowed="models whose operations OpenVINO knows",
            do='load it with backend="torch"',
        ) from error
    return graph


def openvino_runner(
    graph: "openvino.Model", precision: str, threads: int | None, static: bool = True, rest: str | None = None
) -> Callable[[Tensor], Tensor]:
    """A call from images to logits, both float32 on the CPU.

    precision: "fp32", "bf16", or "int8" for a graph with 8-bit layers. threads: torch's number of threads if None.
    rest: "fp32" or "bf16", what computes outside of 8-bit layers ("fp32" by default).
    static: the first eight batch sizes get a graph of fixed shape each, all others share the dynamic one. Fixed shapes
        measured 2 to 12 % faster (DeiT-T and foveate_nano, batch 1 and 16, fp32 and bf16) and compile in 0.2 s.

    Raises FoveateError at the first call where the CPU lacks that precision.
    """
    call = openvino_caller(graph, precision, threads, static, rest)
    # The request reuses its own memory.
    return lambda images: call([images])[0].clone().to(images.device)


def openvino_caller(
    graph: "openvino.Model", precision: str, threads: int | None, static: bool = True, rest: str | None = None
) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A call from all inputs of a graph, with one row an image, to all of its outputs, which the next call overwrites; see `openvino_runner`."""
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS[rest or precision],
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    requests: dict[int | None, openvino.InferRequest] = {}

    def request_of(batch: int) -> "openvino.InferRequest":
        key = batch if static and (batch in requests or len(requests) < STATIC_GRAPHS) else None
        if key not in requests:
            shaped = graph.clone()
            if key is not None:
                shaped.reshape({at: [key, *list(at.partial_shape)[1:]] for at in shaped.inputs})
            compiled = core.compile_model(shaped, "CPU", settings)
            _check_precision(compiled, rest or precision)
            requests[key] = compiled.create_infer_request()
        return requests[key]

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arrays = {at: _on_cpu(tensor).contiguous().numpy() for at, tensor in enumerate(given)}
        found = request_of(len(given[0])).infer(arrays, share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(found[at]) for at in range(len(found)))

    return run


def fast_rest() -> str:
    """What layers beside 8-bit ones are fastest in on this CPU."""
    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


def only_first(graph: "openvino.Model") -> "openvino.Model":
    """A copy of the graph without its other outputs and what only they needed."""
    twin = graph.clone()
    for result in twin.get_results()[1:]:
        twin.remove_result(result)
    return twin


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def _free(tensor: Tensor, single: bool) -> list[int]:
    """The shape for any number of images; for a single one any number of tokens, which are dimension 1 of all but maps."""
    return [-1, *tensor.shape[1:]] if not single else [1, -1, *tensor.shape[2:]] if tensor.dim() < 4 else [1, *tensor.shape[1:]]


def _check_precision(compiled: "openvino.CompiledModel", precision: str) -> None:
    """OpenVINO takes the hint as a wish: on a CPU without bf16 it computes in float32 and says nothing."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != HINTS[precision]:
        raise FoveateError(
            given=f"precision={precision!r} in OpenVINO on a CPU that makes it {used}",
            allowed='"fp32" on this CPU',
            do='load it with precision="fp32" (bf16 needs AVX512-BF16 or AMX)',
        )
