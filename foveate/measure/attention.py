"""Milliseconds of attention, step by step: Algorithm 1 of ViTALiTy against softmax (Table II) and the steps of an attention block (Fig. 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.card import Card
from foveate.errors import FoveateError
from foveate.ledger import Operation
from foveate.measure.clock import Timing, interleave
from foveate.nn.taylor import STEPS, algorithm_terms, taylor_attention
from foveate.workload import block_operations, workload

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TAYLOR, SOFTMAX = tuple(STEPS), ("qk", "softmax", "av")
WHOLE = ("closed form", "fused softmax")
AROUND = ("qkv", "proj", "mlp")
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """One attention: `sets` token sets an image that attend among themselves (windows, pixel groups), in each `heads` score maps of queries x keys."""

    sets: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int

    @property
    def scale(self) -> float:
        """What scores are multiplied with; its value takes no time."""
        return self.head_dim**-0.5

    def tensors(self, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Random q [B, H, n, d], k [B, H, m, d] and v [B, H, m, e], in memory token by token, as projections leave them."""
        wide = ((self.queries, self.head_dim), (self.keys, self.head_dim), (self.keys, self.value_dim))
        return tuple(torch.randn(batch * self.sets, n, self.heads, d, device=device).to(dtype).transpose(1, 2) for n, d in wide)


@dataclass(frozen=True)
class Profile:
    """What each step takes, in milliseconds an image over all heads and layers.

    taylor: the steps of Algorithm 1 by their names in `foveate.nn.taylor.STEPS`. softmax: "qk", "softmax" and "av".
    whole: "closed form", the same Taylor attention in one go, and "fused softmax", torch's scaled_dot_product_attention.
    mha: the steps of Fig. 1 ("qkv", "map": Q K^T and softmax, "score": S V) and what follows them: "proj" and "mlp".
    """

    taylor: dict[str, Timing]
    softmax: dict[str, Timing]
    whole: dict[str, Timing]
    mha: dict[str, Timing]


def attention_shapes(card: Card) -> dict[Shape, int]:
    """The attentions of a backbone and how many of its blocks have each."""
    shapes: Counter[Shape] = Counter()
    for work in workload(card).blocks:
        queries, keys, maps = work.maps
        block = work.card
        shapes[Shape(int(maps) // block.heads, block.heads, queries, keys, block.head_dim, block.value_dim)] += 1
    return dict(shapes)


def profile_attention(
    card: Card, batch: int = 1, precision: str = "fp32", device: str = "cpu", repetitions: int = 15, warmup: int = 3,
    progress: Callable[[int, int], None] | None = None, seconds: float | None = None,
) -> Profile:
    """Times every step of the backbone's attention by itself, on random tensors of its shapes, all steps in turn round by round.

    A step runs for all heads and layers before the clock is read; layers of equal shape share their tensors. Biases, norms and
    what else stands around attention (BatchNorm, gates, convolutions) are left out, the MLP's activation is in.
    precision: "fp32" or "bf16". repetitions, warmup, progress, seconds: as in `interleave`.
    Raises FoveateError for another precision and for counts out of range.
    """
    check_precision(precision)
    if batch < 1:
        raise FoveateError(f"batch={batch}", "a whole number >= 1", "give the number of images in one call")
    dtype = DTYPES[precision]
    with torch.inference_mode():
        runs = attention_runs(card, batch, dtype, device) | around_runs(card, batch, dtype, device)
    wait = torch.cuda.synchronize if device != "cpu" else None
    with torch.inference_mode():
        timings = interleave(runs, repetitions, warmup, progress, images=batch, seconds=seconds, synchronize=wait)
    mha = {"qkv": timings["qkv"], "map": added("map", timings["qk"], timings["softmax"]), "score": timings["av"],
           "proj": timings["proj"], "mlp": timings["mlp"]}  # fmt: skip
    return Profile({n: timings[n] for n in TAYLOR}, {n: timings[n] for n in SOFTMAX}, {n: timings[n] for n in WHOLE}, mha)


def check_precision(*names: str) -> None:
    """Raises FoveateError for a precision that nothing here is measured in."""
    for name in names:
        if name not in DTYPES:
            raise FoveateError(f"precision {name!r}", ", ".join(DTYPES), "choose one of these")


def added(name: str, *timings: Timing) -> Timing:
    """Timings of steps that follow one another as one: the sum of each round."""
    sums = tuple(map(sum, zip(*(timing.samples_ms for timing in timings))))
    return replace(timings[0], name=name, samples_ms=sums)


def attention_runs(card: Card, batch: int, dtype: torch.dtype, device: str) -> dict[str, Run]:
    """A call for each step of Taylor and softmax attention, and for each of the two in one go, over all heads and layers of `card`."""
    ready = [(*_prepared(shape, batch, dtype, device), layers) for shape, layers in attention_shapes(card).items()]

    def every(step: Callable[[Shape, dict[str, Tensor]], object]) -> Run:
        def run() -> None:
            for shape, terms, layers in ready:
                for _ in range(layers):
                    step(shape, terms)

        return run

    taylor = {name: every(lambda shape, terms, step=step: step(terms)) for name, step in STEPS.items()}
    return taylor | {
        "closed form": every(lambda shape, t: taylor_attention(t["q"], t["k"], t["v"], shape.scale)),
        "qk": every(lambda shape, t: (t["q"] * shape.scale) @ t["k"].mT),
        "softmax": every(lambda shape, t: t["scores"].softmax(-1)),
        "av": every(lambda shape, t: t["attention"] @ t["v"]),
        "fused softmax": every(lambda shape, t: F.scaled_dot_product_attention(t["q"], t["k"], t["v"], scale=shape.scale)),
    }


def _prepared(shape: Shape, batch: int, dtype: torch.dtype, device: str) -> tuple[Shape, dict[str, Tensor]]:
    """The inputs of every step: what the steps before it have left."""
    q, k, v = shape.tensors(batch, dtype, device)
    # Algorithm 1 is written for float32 and wider; in bfloat16 its steps are run for their time, not for their values.
    terms = {name: value.to(dtype) for name, value in algorithm_terms(q, k, v, shape.scale).items()}
    for step in STEPS.values():
        step(terms)
    scores = (q * shape.scale) @ k.mT
    return shape, terms | {"scores": scores, "attention": scores.softmax(-1)}


def around_runs(card: Card, batch: int, dtype: torch.dtype, device: str) -> dict[str, Run]:
    """Calls for what stands around attention in all blocks: the linears that make q, k and v, the output linear, the MLP."""
    groups: dict[str, list[Run]] = {name: [] for name in AROUND}
    shared: dict[tuple, Run] = {}
    for work in workload(card).blocks:
        names = {f"blocks.{work.number}.{part.name}": name for name, parts in
                 zip(AROUND, (work.card.projections, work.card.outputs, work.card.mlp)) for part in parts}  # fmt: skip
        for operation in block_operations(work, card.next_block(work.number)):
            name = names.get(operation.origin, "mlp" if operation.origin.endswith(".mlp.act") else None)
            if name:
                alike = (operation.kind, operation.m, operation.n, operation.k, operation.times)
                shared[alike] = shared.get(alike) or _operation_run(operation, batch, dtype, device)
                groups[name].append(shared[alike])
    return {name: _in_turn(runs) for name, runs in groups.items()}


def _in_turn(runs: Iterable[Run]) -> Run:
    runs = list(runs)

    def run() -> None:
        for one in runs:
            one()

    return run


def _operation_run(operation: Operation, batch: int, dtype: torch.dtype, device: str) -> Run:
    """A linear (several of one shape side by side), or a GELU, with the operation's shape on random rows."""
    m, n, k, times = operation.m, operation.n, operation.k, int(operation.times)
    if operation.kind != "gemm":
        x = torch.randn(batch, m, n * times, device=device).to(dtype)
        return lambda: F.gelu(x)
    x, weight = torch.randn(batch, m, k * times, device=device).to(dtype), torch.randn(times, n, k, device=device).to(dtype)
    if times == 1:
        return lambda: F.linear(x, weight[0])
    parts = [(x[..., i * k : (i + 1) * k], weight[i]) for i in range(times)]
    return lambda: [F.linear(rows, kernel) for rows, kernel in parts]
