"""README.txt of an artifact: how to run it without foveate, in ten lines."""

from __future__ import annotations

from typing import Any

_LOAD = {
    "onnx": ("pip install onnxruntime", "import onnxruntime; session = onnxruntime.InferenceSession({file!r})",
             "logits = session.run(None, {{'images': images}})[0]"),
    "openvino": ("pip install openvino", "import openvino; session = openvino.compile_model({file!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': {hint!r}}})",
                 "logits = session(images)[0]"),
    "torch": ("pip install torch", "import torch; session = torch.export.load({file!r}).module()", "logits = session(torch.from_numpy(images))"),
}
_LOAD["ort"] = _LOAD["onnx"]


def readme(data: dict[str, Any]) -> str:
    """The text for the artifact that `data` (its artifact.json) describes."""
    first, to, parity = data["graphs"][0], data["preprocessing"], data["parity"]
    install, load, call = _LOAD[data["kind"]]
    hint = "bf16" if data["precision"] == "bf16" or first["rounded_rest"] else "f32"
    batch = "any number of images" if first["batch"] is None else f"exactly {first['batch']} image{'s' * (first['batch'] > 1)} a call"
    several = [graph["file"] for graph in data["graphs"]]
    told = f"Multiply-accumulates of an image: {data['macs'] / 1e6:.1f} M (dense: {data['macs_dense'] / 1e6:.1f} M)."
    if data["gates"]:
        told = f"Efforts, cheapest first: {', '.join(several)}. \"gates\" in artifact.json says which images go on to the next one. {told}"
    elif len(several) > 1:
        told = f"Segments: {', '.join(several)}. Each gives logits, then what the next one takes; \"plan_form\" says which images leave. {told}"
    lines = [
        f"{data['backbone']}, {data['plan']}, {data['precision']}: written by foveate {data['foveate']}. Everything about it is in artifact.json.",
        f"Input \"images\": float32 {_shape(data['input'])} ({batch}), RGB. Output \"logits\": float32 {_shape(data['output'])}.",
        f"Resize to {to['image_size']} pixels a side ({to['interpolation']}, centre crop {to['crop_pct']}), divide by 255, "
        f"subtract {to['mean']}, divide by {to['std']}.",
        f"  {install}",
        f"  {load.format(file=first['file'], hint=hint)}",
        f"  {call.format()}",
        "  print(labels[logits[0].argmax()])  # labels: json.load(open('artifact.json'))['labels']",
        told,
        f"Logits differ from the float32 model's by {parity['worst']:.1e} of the largest at most ({parity['images']} images, {parity['source']}).",
        "With foveate: fv.runtime.load_artifact(FOLDER)(images), or `foveate predict FOLDER picture.png`.",
    ]
    return "\n".join(lines) + "\n"


def _shape(side: dict[str, Any]) -> str:
    return f"[{', '.join(map(str, side['shape']))}]"
