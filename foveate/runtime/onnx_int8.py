"""8 bits in ONNX Runtime: weights in one range an output channel, activations in the range that each tensor shows while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from foveate.runtime.exported import silent

try:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
except ImportError:  # an extra: `installed_backends` leaves it out
    onnx = None


def quantised_onnx(graph: "onnx.ModelProto", methods: Sequence[str] = ()) -> "onnx.ModelProto":
    """A copy of a graph of `onnx_graph` in which the linears of the backbone compute in 8 bits; needs no images.

    methods: names of modules that are no part of the backbone. They stay in float32 (a rounded score is another decision), and so do the head,
    convolutions and the products inside attention. A range is that of a tensor of the whole batch: an image's logits depend on the
    others in its batch by what 8 bits explain.
    """
    weights = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    chosen = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights and _module(node.name) not in ("", *methods)]
    with silent(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(graph, path, nodes_to_quantize=chosen, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(path)


def _module(name: str) -> str:
    """"blocks" of "blocks.0.attn.qkv/MatMul_12", also inside a wrapper's "model."; nothing for a node that belongs to no module."""
    return name.split("/")[0].removeprefix("model.").split(".")[0]
