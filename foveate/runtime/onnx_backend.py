"""ONNX Runtime as a backend: one graph for all batch sizes, in float32."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.runtime.exported import exported_program, named, on_cpu, silent

try:
    import onnx
    import onnx_ir
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
    from onnx_ir.passes.common import RemoveUnusedNodesPass
except ImportError:  # an extra: `installed_backends` leaves it out
    onnx = onnxruntime = None

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
SCOPES = "pkg.torch.onnx.name_scopes"
Graph = "onnx.ModelProto | bytes | str | Path"


def onnx_graph(
    model: nn.Module, images: Tensor | Sequence[Tensor], single: bool, inputs: Sequence[str] = (INPUT,), outputs: Sequence[str] = ()
) -> "onnx.ModelProto":
    """Convert a copy of `model`, in evaluation mode and float32, to an ONNX graph from "images" to "logits".

    images: [B, C, H, W] to trace with. They must not be those of the later check, or a decision frozen into the graph
    would pass unseen. Of a segment all that it takes, tensors [B, n, ...]. single: the graph takes one image (per-image
    token counts: n is free, too); otherwise any number. inputs: names of what the model takes. outputs: of what it
    returns behind the logits.
    Raises FoveateError where torch cannot export the model or an operation has no ONNX form.
    """
    program = exported_program(model, images, 1 if single else None)
    try:
        with silent():
            made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=list(inputs), output_names=[OUTPUT, *outputs])
            graph = made.model_proto
    except Exception as error:  # the exporter raises whatever its translation raises
        raise FoveateError(
            given=f"a model that ONNX cannot express ({named(error)})",
            allowed="models whose operations have an ONNX form",
            do='load it with backend="torch"',
        ) from error
    return _bare(graph, single)


def onnx_runner(graph: Graph, threads: int | None) -> Callable[[Tensor], Tensor]:
    """A call from images to logits, both float32 on the CPU; arguments and errors as of `onnx_session`."""
    call = onnx_caller(graph, threads)
    return lambda images: call([images])[0].to(images.device)


def onnx_caller(
    graph: Graph, threads: int | None, inputs: Sequence[str] = (INPUT,), outputs: Sequence[str] = ()
) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A call from all inputs of a graph to its logits and what stands behind them, by the names given to `onnx_graph`."""
    session = onnx_session(graph, threads)

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arrays = {name: on_cpu(tensor).contiguous().numpy() for name, tensor in zip(inputs, given, strict=True)}
        return tuple(map(torch.from_numpy, session.run([OUTPUT, *outputs], arrays)))

    return run


def onnx_session(graph: Graph, threads: int | None) -> "onnxruntime.InferenceSession":
    """ONNX Runtime's session of a graph on the CPU.

    graph: an ONNX model, its bytes, or the path of an .onnx or .ort file. threads: torch's number of threads if None.
    Raises FoveateError for a graph that ONNX Runtime does not take.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    given = str(graph) if isinstance(graph, str | Path) else graph if isinstance(graph, bytes) else graph.SerializeToString()
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class but this
        raise FoveateError(
            given=f"a graph that ONNX Runtime cannot load ({named(error)})",
            allowed="ONNX graphs of operations that it has on the CPU",
            do='load it with backend="torch"',
        ) from error


def only_logits(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph without its other outputs and what only they needed."""
    del graph.graph.output[1:]
    model = onnx_ir.serde.deserialize_model(graph)
    RemoveUnusedNodesPass()(model)
    return onnx_ir.serde.serialize_model(model)


def fixed(graph: "onnx.ModelProto", batch: int | None) -> "onnx.ModelProto":
    """The graph for `batch` images only; as it is for None."""
    for value in (*graph.graph.input, *graph.graph.output) if batch is not None else ():
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return graph


def write_ort(graph: "onnx.ModelProto", path: Path) -> None:
    """Write the graph in ONNX Runtime's own format, which its small builds for phones and boards read as well.

    Optimised as far as it holds on any CPU: the layouts of one kind of CPU are left to the machine that loads it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _bare(graph: "onnx.ModelProto", single: bool) -> "onnx.ModelProto":
    """The graph without the exporter's notes (stack traces with paths of this machine), its free dimension called "batch".

    Nodes are named after the module they come from: "blocks.0.attn.qkv/MatMul_12".
    """
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:]
    graph.doc_string = graph.graph.doc_string = ""
    for number, node in enumerate(graph.graph.node):
        scopes = next((ast.literal_eval(note.value) for note in node.metadata_props if note.key == SCOPES), [""])
        module = max(scopes[:-1], key=len, default="")
        node.name = f"{'' if module.startswith('_') else module}/{node.op_type}_{number}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
        if not single:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return graph
