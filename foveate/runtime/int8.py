"""Post-training quantisation: the backbone's products in 8 bits, those that take decisions as they were."""

import contextlib
import io
import re
from collections.abc import Sequence
from importlib.util import find_spec

from torch import Tensor

from foveate.errors import FoveateError
from foveate.runtime.exported import named, silent

try:
    import openvino
except ImportError:  # an extra: `installed_backends` leaves it out
    openvino = None

CALIBRATED_ON = 64
"""Images that ranges are taken from, at most: with more of them no range of a DeiT-S moved by a step, and each costs a tenth of a second."""
SMOOTHED = "nncf_smooth_quant"
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")


def quantised_graph(graph: "openvino.Model", images: Tensor, methods: Sequence[str] = ()) -> "openvino.Model":
    """A copy of an OpenVINO graph whose backbone computes in 8 bits.

    graph: as `openvino_graph` made it, whose nodes are named after the modules they come from. images: normalised [B, C, H, W] to take
    the ranges from, up to 64. methods: names of modules that are no part of the backbone. Their products (selectors, gates, exits)
    stay wide, and so do those that belong to no module (package tokens, linear attention): a rounded score is another decision.

    Raises FoveateError where NNCF is not installed or cannot quantise the graph.
    """
    if find_spec("nncf") is None:
        raise FoveateError("precision='int8' without NNCF", "fp32 or bf16 here", "pip install 'foveate[openvino]'")
    import nncf  # takes seconds, which only those who quantise should spend

    spared = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() in PRODUCTS and not of_backbone(node.get_friendly_name(), methods)]
    rows = [image[None].float().cpu().numpy() for image in images[:CALIBRATED_ON]]
    try:
        # It prints bars and logs each step; what counts is the check of the engine.
        with silent(), contextlib.redirect_stdout(io.StringIO()):
            made = nncf.quantize(graph, nncf.Dataset(rows), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER, ignored_scope=nncf.IgnoredScope(names=spared))
    except Exception as error:  # it raises whatever its steps raise
        raise FoveateError(f"a model that NNCF cannot quantise ({named(error)})", "models that run in OpenVINO in float32", 'load it with precision="bf16"') from error
    _unsmooth(made, graph, set(spared))
    return made


def of_backbone(name: str, methods: Sequence[str]) -> bool:
    """Whether a node belongs to a module, and to none of those that `methods` names: "__module.blocks.0.attn.qkv/aten::linear/MatMul" does."""
    module = re.match(r"__module\.(?:model\.)?([^./]+)[./]", name)
    return module is not None and module[1] not in methods


def _unsmooth(made: "openvino.Model", graph: "openvino.Model", spared: set[str]) -> None:
    """Takes out the factors that NNCF moves from activations to weights where neither is quantised: there they only cost time."""
    before = {node.get_friendly_name(): node for node in graph.get_ordered_ops() if node.get_friendly_name() in spared}
    for node in made.get_ordered_ops():
        sides = node.inputs() if node.get_friendly_name() in before else []
        smoothed = [side for side in sides if side.get_source_output().get_node().get_friendly_name().endswith(SMOOTHED)]
        for side in smoothed:
            other = 1 - side.get_index()
            weight = before[node.get_friendly_name()].input_value(other).get_node()
            side.replace_source_output(side.get_source_output().get_node().input_value(0))
            node.input(other).replace_source_output(openvino.opset13.constant(weight.data.copy()).output(0))
