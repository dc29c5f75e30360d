"""Rewrites of an OpenVINO graph that its own compiler does not make: values stay the same, small operations go."""

from __future__ import annotations

try:
    import openvino
    from openvino import opset11
except ImportError:  # an extra: `installed_backends` leaves it out
    openvino = None


def simplify(graph: "openvino.Model") -> None:
    """Takes out of `graph`, in place, what two small operations do that one or none can: see `_sorted_top_k` and `_selected`.

    A batch of one spends as long on starting an operation as on computing it where few numbers are concerned.
    """
    for node in graph.get_ordered_ops():
        made = _sorted_top_k(node) or _selected(node)
        if made is not None:
            node.output(0).replace(made)


def _sorted_top_k(node: "openvino.Node") -> "openvino.Output | None":
    """The indices of the k largest in rising order, for a sort behind a top-k."""
    if node.get_type_name() != "TopK" or "aten::sort/" not in node.get_friendly_name() or node.output(1).get_target_inputs():
        return None
    source, asked = node.input_value(0), node.get_attributes()
    first = source.get_node()
    if first.get_type_name() != "TopK" or source.get_index() != 1 or (asked["mode"], asked["sort"]) != ("min", "value") or first.output(0).get_target_inputs():
        return None
    own = first.get_attributes()
    if asked["axis"] != own["axis"]:
        return None
    made = opset11.topk(first.input_value(0), first.input_value(1), own["axis"], own["mode"], "index", index_element_type=own["index_element_type"])
    made.set_friendly_name(first.get_friendly_name())
    return made.output(1)


def _selected(node: "openvino.Node") -> "openvino.Output | None":
    """The part itself, for one that is taken out of a stack of several."""
    if node.get_type_name() != "Gather":
        return None
    stack, (index, axis) = node.input_value(0).get_node(), (node.input_value(side).get_node() for side in (1, 2))
    if stack.get_type_name() != "Concat" or {index.get_type_name(), axis.get_type_name()} != {"Constant"} or index.data.ndim:
        return None
    rank = len(node.input_value(0).get_partial_shape())
    parts = [stack.input_value(side).get_node() for side in range(stack.get_input_size())]
    along = stack.get_attributes()["axis"] % rank
    if int(axis.data) % rank != along or any(part.get_type_name() != "Unsqueeze" for part in parts):
        return None
    part = parts[int(index.data) % len(parts)]
    added = part.input_value(1).get_node()
    if added.get_type_name() != "Constant" or [int(one) % rank for one in added.data.flatten()] != [along]:
        return None
    return part.input_value(0)
