"""How far apart queries and keys are, as the softmax sees it, before and after the keys are mean-centred (Fig. 3 of ViTALiTy)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from foveate.adaptive import AdaptiveModel
from foveate.adoption import adapt, restore
from foveate.errors import FoveateError
from foveate.nn.attention import Mix
from foveate.nn.precision import at_least_float32
from foveate.nn.tokens import Tokens
from foveate.plan import Plan
from foveate.report import Chart, Line, Made, Results, Table

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IMAGES_AT_ONCE = 8
SAMPLE = 2**20
"""Pairs of a block from which its quantiles are taken; its shares are counted over all pairs."""
FORBIDDEN = -50.0
"""Score biases below this are masks (Swin's shifted windows: -100), not learned positions."""
FORMS = {"before": "before centring", "after": "after centring"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Similarity:
    """The similarities of one block (1-based), over all images, heads and pairs of tokens that see each other.

    weak_before, weak_after: share of them in [-1, 1), where exp(x) is near 1 + x, before and after centring the keys.
    before, after: their 5, 25, 50, 75 and 95 % quantiles.
    """

    block: int
    pairs: int
    weak_before: float
    weak_after: float
    before: tuple[float, ...]
    after: tuple[float, ...]


def similarities(q: Tensor, k: Tensor, scale: float, weights: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """scale Q K^T and scale Q K_hat^T of all pairs that see each other, in a row each, in float32 or wider (section III-A of ViTALiTy).

    K_hat: the keys minus their mean over those that a query sees, so that its row of similarities has mean 0.
    q: [B, n, H, d], k: [B, m, H, d]. weights: [B, m], keys of weight 0 are not seen. bias: score biases, broadcastable to
    [B, H, n, m]; they are left out, because no Taylor attention has them, but pairs that they forbid are not counted.
    """
    q, k = (at_least_float32(t).transpose(1, 2) for t in (q, k))
    scores, centred = (scale * (q @ keys.mT) for keys in (k, k - k.mean(-2, keepdim=True)))
    if weights is None and bias is None:
        return scores.flatten(), centred.flatten()
    seen = torch.ones_like(scores, dtype=torch.bool)
    if weights is not None:
        seen &= (weights > 0)[:, None, None]
    if bias is not None:
        seen &= bias > FORBIDDEN
    centred = centred - (centred * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)
    return scores[seen], centred[seen]


@torch.no_grad()
def attention_similarity(model: nn.Module, images: Tensor, progress: Progress = lambda done, total: None) -> list[Similarity]:
    """What each block's softmax is given on `images`, before and after mean-centring the keys (Fig. 3 of ViTALiTy).

    model: a timm model, or an adapted one. Always of its dense backbone: every block runs with softmax attention and all
    tokens, whatever the plan replaces or prunes, with the weights that the model has now.
    images: normalised, [B, 3, H, W]. progress: called with the images done and in all.
    Raises FoveateError for blocks without softmax attention and for similarities that are not finite.
    """
    dense = adapt(restore(model) if isinstance(model, AdaptiveModel) else model, Plan()).eval()
    dense.anatomy.check_attention()
    like, depth = next(dense.parameters()), dense.card.depth
    parts = images.split(IMAGES_AT_ONCE)
    records = [Record(SAMPLE // len(parts)) for _ in range(depth)]
    for number, part in enumerate(parts, 1):
        tokens = dense.anatomy.stem(part.to(like))
        for block, record in enumerate(records, 1):
            tokens = dense.anatomy.block(block, tokens, partial(_recording, record, dense.anatomy.attend))
        progress(min(number * IMAGES_AT_ONCE, len(images)), len(images))
    found = [record.similarity(block) for block, record in enumerate(records, 1)]
    if bad := [one.block for one in found if not np.isfinite((*one.before, *one.after)).all()]:
        raise FoveateError(f"similarities of block {bad[0]} of {dense.card.name} that are not finite", "a model whose scores are numbers on these images",
                           "load an intact checkpoint, and check how the images are normalised")
    return found


@dataclass
class Record:
    """What one block has shown so far: counts of all pairs, and a sample of their similarities of at most `share` a call."""

    share: int
    pairs: int = 0
    weak: list[int] = field(default_factory=lambda: [0, 0])
    samples: list[Tensor] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, before: Tensor, after: Tensor) -> None:
        both = torch.stack([before, after])
        self.pairs += both.shape[1]
        self.weak = [count + int(((x >= -1) & (x < 1)).sum()) for count, x in zip(self.weak, both)]
        if both.shape[1] > self.share:
            # Not every s-th pair: s may share a divisor with the number of keys.
            both = both[:, torch.randint(both.shape[1], (self.share,), generator=self.generator).to(both.device)]
        self.samples.append(both.cpu())

    def similarity(self, block: int) -> Similarity:
        low, high = np.quantile(torch.cat(self.samples, 1).numpy(), QUANTILES, axis=1).T.tolist()
        before, after = (count / self.pairs for count in self.weak)
        return Similarity(block, self.pairs, before, after, tuple(low), tuple(high))


def _recording(record: Record, attend: Mix, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, scale: float, *settings, **more) -> Tensor:
    """The family's own softmax attention, whose similarities are written down first."""
    record.add(*similarities(q, k, scale, more.get("weights"), more.get("bias")))
    return attend(q, k, v, tokens, scale, *settings, **more)


def similarity_results(found: list[Similarity], images: int, title: str, made: Made = Made()) -> Results:
    """The report of `attention_similarity`: shares and medians by block, as a table and as two charts."""
    blocks, weak = np.array([one.block for one in found]), {form: np.array([100 * getattr(one, f"weak_{form}") for one in found]) for form in FORMS}
    shares = tuple(Line(words, weak[form]) for form, words in FORMS.items())
    spread = {form: np.array([getattr(one, form) for one in found])[:, 1:4].T for form in FORMS}
    medians = tuple(Line(words, spread[form][1], spread[form][0], spread[form][2]) for form, words in FORMS.items())
    head = ("block", "in [-1, 1) before (%)", "after (%)", "median before", "quartiles", "median after", "quartiles")
    rows = tuple((str(one.block), f"{100 * one.weak_before:.1f}", f"{100 * one.weak_after:.1f}", *_spread(one.before), *_spread(one.after)) for one in found)
    about = f"Over all heads and pairs of tokens of {images} images."
    return Results(
        title,
        f"{weak['before'].mean():.0f} % of the similarities lie in [-1, 1) before the keys are centred, {weak['after'].mean():.0f} % after (mean of the blocks).",
        tables=(Table("Similarities of queries and keys", head, rows, about),),
        charts=(Chart("Weak similarities", "block", "share in [-1, 1) (%)", blocks, shares,
                      "There exp(x) is near 1 + x, which Taylor attention puts in its place."),
                Chart("All similarities", "block", "median and quartiles", blocks, medians,
                      "Centring the keys leaves softmax as it is: it moves a whole row.")),
        notes=("Similarity: what the softmax is given, q.k times the block's own scale (1 / sqrt(d) in most), without score biases. "
               "Pairs that shifted windows forbid are not counted.",
               "Always of the dense backbone with softmax attention in every block: the plan's own attention and pruning are left out."),
        figures={"images": images, "blocks": [asdict(one) for one in found]}, made=made)


def _spread(quantiles: tuple[float, ...]) -> tuple[str, str]:
    low, median, high = (round(value, 2) + 0.0 for value in quantiles[1:4])  # + 0.0: without it some are "-0.00"
    return f"{median:.2f}", f"{low:.2f} to {high:.2f}"
