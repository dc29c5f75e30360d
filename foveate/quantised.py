"""Layers that compute in 8 bits: where a model has them, the ranges they begin with, and how they come and go.

`quantise` turns linears and convolutions into fake-quantised ones in place. Names of weights stay as they are; each layer gains
`input_quantiser.low`, `input_quantiser.span` and `weight_quantiser.scale`. Training learns them with the weights, evaluation keeps them.

The arithmetic and the learned ranges are those of NNCF's torch quantisation (a test holds them together), but not its way into a model:
`nncf.quantize` hooks functions under the names that one traced pass of `forward` gives them, and a plan has a packed and a masked form
that call the same layers otherwise. Of 59 quantisers that NNCF 3.4 placed in an SPViT model, 38 ran in training and none in `traced` or
`training_outputs`, without a word. Its kernels are also compiled at the first step, which needs a compiler (on a GPU nvcc) and took minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.nn.fake_quantise import TOP, frozen, learned

HALF = (TOP + 1) // 2
MARK = ".weight_quantiser.scale"
RANGE = (-1.0, 1.0)  # until a state or a calibration says better


class InputQuantiser(nn.Module):
    """One range for everything a layer reads, its ends apart from each other: activations behind a GELU are lopsided."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.span = nn.Parameter(torch.tensor([low])), nn.Parameter(torch.tensor([high - low]))

    def forward(self, x: Tensor) -> Tensor:
        return (learned if self.training else frozen)(x, self.low, self.span)


class WeightQuantiser(nn.Module):
    """A range around 0 for each output channel: level q in -128...127 stands for scale / 127 q. scale: [out, 1, ...]."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.scale = nn.Parameter(weight.detach().flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        step = self.scale.abs() / (HALF - 1)
        return (learned if self.training else frozen)(weight, -HALF * step, TOP * step)


class QuantisedLinear(nn.Linear):
    """A linear between 8-bit numbers; the sum and the bias stay wide."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantiser(x), self.weight_quantiser(self.weight), self.bias)


class QuantisedConv2d(nn.Conv2d):
    """A convolution between 8-bit numbers; the sum and the bias stay wide."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.input_quantiser(x), self.weight_quantiser(self.weight), self.bias)


FORMS = {nn.Linear: QuantisedLinear, nn.Conv2d: QuantisedConv2d}
PLAIN = {form: kind for kind, form in FORMS.items()}


def quantisable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that `quantise` may take, by name: linears and convolutions of the backbone.

    Parts of methods (selectors, gates, exits) stay as they are, because a rounded score turns into another decision, and so do
    convolutions in groups, which have few products.
    """
    own = tuple(f"{method.name}." for method in getattr(getattr(model, "plan", None), "methods", ()))
    return {name: layer for name, layer in model.named_modules()
            if type(layer) in FORMS and getattr(layer, "groups", 1) == 1 and not name.startswith(own)}


def quantised(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that compute in 8 bits."""
    return tuple(name for name, layer in model.named_modules() if type(layer) in PLAIN)


def quantised_in(state: Iterable[str]) -> tuple[str, ...]:
    """Names of the layers that computed in 8 bits in the model whose state_dict has these keys."""
    return tuple(key.removesuffix(MARK) for key in state if key.endswith(MARK))


def is_range(name: str) -> bool:
    """Whether a parameter is the range of an 8-bit layer."""
    return any(f".{part}." in f".{name}" for part in ("input_quantiser", "weight_quantiser"))


def quantise(model: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Lets the named layers compute in 8 bits, in place: inputs in one range each, weights in one a channel.

    ranges: layer -> (low, high) of its input, as `observe` finds them. Raises FoveateError for a name that is no such layer.
    """
    layers = quantisable(model)
    if foreign := sorted(set(ranges) - set(layers)):
        raise FoveateError(f"8 bits in {foreign[0]}", f"linears and convolutions of the backbone ({len(layers)} here)",
                           "take the names from foveate.quantised.quantisable(model)")
    for name, (low, high) in ranges.items():
        layer = layers[name]
        # The object stays the same, as whoever holds it expects; only what it computes changes.
        layer.__class__ = FORMS[type(layer)]
        layer.input_quantiser, layer.weight_quantiser = InputQuantiser(low, high), WeightQuantiser(layer.weight)
        for part in (layer.input_quantiser, layer.weight_quantiser):
            part.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def unquantise(model: nn.Module) -> None:
    """Undoes `quantise` in place: the layers compute with their weights as they are."""
    for layer in list(model.modules()):
        if type(layer) in PLAIN:
            del layer.input_quantiser, layer.weight_quantiser
            layer.__class__ = PLAIN[type(layer)]


@torch.no_grad()
def observe(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Layer -> (low, high) of its input: the least and the largest value of a batch, averaged over the batches.

    batches: normalised images [B, 3, H, W]. The model comes back in its own mode. Layers whose weights are read past the layer itself,
    in the packed form or in the masked one (as fused projections of EVA do), are not in the result: they must stay as they are.
    Raises FoveateError for no images, and for activations that are not finite.
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    ran: set[str] = set()
    training, modes = model.training, [(module, module.training) for module in model.modules()]
    model.eval()
    like = next(model.parameters())
    for images in batches:
        images = images.to(like)
        with _watching(quantisable(model), seen):
            model(images)
        ran = ran or _ran_masked(model, images) or set(seen)
    model.train(training)
    for module, mode in modes:
        module.training = mode
    if not seen:
        raise FoveateError("no images to take the ranges from", "some normalised images of the training set", "give 256 of them")
    found = {name: tuple(sum(ends) / len(ends) for ends in zip(*values)) for name, values in seen.items() if name in ran}
    bad = next((name for name, ends in found.items() if not all(abs(end) < float("inf") for end in ends)), None)
    if bad:
        raise FoveateError(f"NaN or infinite values that {bad} reads", "finite activations", "take weights of a training that has not diverged")
    return found


def _ran_masked(model: nn.Module, images: Tensor) -> set[str]:
    """The layers that the training form calls, under the packed form's decisions; none for a model that has no forms."""
    if not hasattr(model, "masked"):
        return set()
    ran: dict[str, list[tuple[float, float]]] = {}
    trace = model.traced(images)[1]
    with _watching(quantisable(model), ran):
        model.masked(images, trace)
    return set(ran)


class _watching:
    """Inside the block, `seen` collects the ends of what each layer reads."""

    def __init__(self, layers: Mapping[str, nn.Module], seen: dict[str, list[tuple[float, float]]]):
        self.layers, self.seen = layers, seen

    def __enter__(self) -> None:
        self.handles = [layer.register_forward_pre_hook(partial(self.note, name)) for name, layer in self.layers.items()]

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def note(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = inputs[0].aminmax()
        self.seen.setdefault(name, []).append((float(low), float(high)))
