"""Which way of computing the same thing is faster here: measured once, for attention kept in a file beside the cards."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.card import cache_folder
from foveate.errors import FoveateError
from foveate.files import write_atomic
from foveate.machine import package_versions, processor
from foveate.nn.attention import attend, dense_attention

FORM = 1
ROUNDS = 5
LENGTHS = (16, 32, 48, 64, 96, 128, 196, 256, 400, 576, 1024)
MOST_SCORES = 3_000_000
"""Longer lengths are not measured, but share the answer of the longest that is: all of it takes half a second."""
TOGETHER = 8
"""Images of a call that stands for all calls of more than one image."""


def fastest(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> str:
    """The name of the call with the least median time; all run in turn, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return min(calls, key=lambda name: statistics.median(times[name]))


@dataclass(frozen=True)
class Softmax:
    """Whether torch's fused attention is faster than two products with a softmax between them: softmax(q, k), as `Fused` asks.

    one, many: (tokens, fused) by rising length, for one image and for several at once. The nearest length answers.
    """

    one: tuple[tuple[int, bool], ...]
    many: tuple[tuple[int, bool], ...]

    def __call__(self, q: Tensor, k: Tensor) -> bool:
        if q.is_cuda or torch.jit.is_tracing():
            return True
        tokens = k.shape[-2]
        return min(self.one if q.shape[0] == 1 else self.many, key=lambda row: max(row[0] / tokens, tokens / row[0]))[1]


def softmax_table(heads: int, dim: int, tokens: int, dtype: torch.dtype) -> Softmax:
    """The table for `heads` heads of width `dim` and up to `tokens` tokens on this machine's CPU, from the cache or measured.

    A cache that cannot be written or read costs the measurement again, nothing else.
    """
    lengths = [n for n in LENGTHS if n < tokens] + [min([n for n in LENGTHS if n >= tokens], default=LENGTHS[-1])]
    lengths = list(dict.fromkeys(lengths))
    path = _file({"form": FORM, "heads": heads, "dim": dim, "lengths": lengths, "dtype": str(dtype), "threads": torch.get_num_threads()})
    try:
        kept = json.loads(path.read_text())
        return Softmax(*(tuple((int(n), bool(fused)) for n, fused in kept[name]) for name in ("one", "many")))
    except (OSError, ValueError, KeyError, TypeError):
        found = Softmax(*(_measured(heads, dim, lengths, images, dtype) for images in (1, TOGETHER)))
    try:
        write_atomic(path, lambda file: file.write_text(json.dumps({"one": found.one, "many": found.many})))
    except OSError:
        pass
    return found


@torch.inference_mode()
def _measured(heads: int, dim: int, lengths: list[int], images: int, dtype: torch.dtype) -> tuple[tuple[int, bool], ...]:
    rows = []
    for n in lengths:
        if images * heads * n * n > MOST_SCORES and rows:
            break
        q, k, v = torch.randn(images, n, 3, heads, dim).to(dtype).permute(2, 0, 3, 1, 4)
        calls = {name: lambda fused=fused: dense_attention(q, k, v, dim**-0.5, fused).transpose(1, 2).flatten(2)
                 for name, fused in (("fused", True), ("explicit", False))}  # fmt: skip
        rows.append((n, fastest(calls) == "fused"))
    return tuple(rows)


def _file(settings: dict) -> Path:
    """Where what was measured under `settings` is kept: one file a processor, torch version and setting."""
    key = json.dumps([processor(), package_versions(("torch",)), settings], sort_keys=True)
    return cache_folder().parents[1] / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def choose_softmax(model: nn.Module) -> int:
    """Lets every softmax attention of an adaptive `model`'s flat blocks choose its form by the number of its tokens; how many there are.

    Blocks with all their tokens then run as the pruned ones do, no longer as timm wrote them. Models of other kinds, and those on an
    accelerator, stay as they are.
    """
    anatomy = getattr(model, "anatomy", None)
    like = next(model.parameters())
    if anatomy is None or anatomy.attend is not attend or like.device.type != "cpu" or not _plain(anatomy):
        return 0
    tokens = max(block.patches for block in model.card.blocks) + model.card.prefix_tokens
    shapes = {(block.heads, block.head_dim) for block in model.card.blocks}
    tables = {shape: softmax_table(*shape, tokens, like.dtype) for shape in shapes}
    for block, card in zip(anatomy.blocks, model.card.blocks):
        block.attn.fused_attn = tables[card.heads, card.head_dim]
    anatomy.natively = False
    return len(anatomy.blocks)


def _plain(anatomy) -> bool:
    """Whether all blocks can run outside timm's own forward, and have an attention that asks how to compute softmax."""
    try:
        anatomy.check_attention()
    except FoveateError:
        return False
    return all(hasattr(getattr(block, "attn", None), "fused_attn") for block in anatomy.blocks)
