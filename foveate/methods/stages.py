"""One pruning stage in every form: decide which patch tokens live on, then prune. Shared by methods that score tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from foveate.methods.base import kept_count
from foveate.methods.hooks import Run
from foveate.nn.precision import at_least_float32
from foveate.nn.prune import at_least_one, gumbel_keep, prune_masked, prune_rows, prune_top_k, top_k
from foveate.nn.tokens import Tokens, with_all_live

Pool = Callable[[Tensor], Tensor]
Score = Callable[[Tensor, Pool], Tensor]
"""(patch rows [..., D], mean over an image's kept patches) -> probabilities [..., 2] of (keep, drop)."""


@dataclass(frozen=True)
class Rule:
    """How one stage decides.

    keep: ratio of the stage's own patch slots, exact for select="topk"; select="argmax" keeps where keeping is likelier, and may aim at none.
    package: gather what is dropped into a package token; weighted: with the keep probabilities (Eq. 8) or evenly.
    noise: scale of the Gumbel noise of sampled decisions in training (Eq. 7); None: training decides as evaluation does.
    """

    after: int
    keep: float | None
    select: str
    package: bool
    weighted: bool = True
    noise: float | None = 1.0


def prune_stage(tokens: Tokens, run: Run, rule: Rule, score: Score) -> Tokens:
    """Scores the live patches, decides by `rule` or as `run.replay` says, prunes, and records the stage in `run`."""
    if run.masked and not tokens.masked:
        tokens = with_all_live(tokens)
    stage = _masked if tokens.masked else _rows if tokens.ragged else _single if tokens.packages is None else _uniform
    tokens = stage(tokens, run, rule, score)
    run.pruned(rule.after, rule.keep, tokens)
    return tokens


def _masked(tokens: Tokens, run: Run, rule: Rule, score: Score) -> Tokens:
    patches, live = tokens.x[:, tokens.patches], tokens.live[:, tokens.patches]
    chance = score(patches, lambda f: _mean(f, live))
    replayed = run.replayed(patches.device)
    if replayed is not None:
        keep = replayed.to(live.dtype)
    elif run.sample and rule.noise is not None:
        keep = at_least_one(gumbel_keep(chance, rule.noise).to(live.dtype), live, chance[..., 0])
    else:
        keep = _decide(chance, live, tokens, rule, run)
    return prune_masked(tokens, keep, _weight(chance, rule), rule.package)


def _uniform(tokens: Tokens, run: Run, rule: Rule, score: Score) -> Tokens:
    patches = tokens.x[:, tokens.patches]
    chance = score(patches, lambda f: f.mean(-2, keepdim=True))
    replayed = run.replayed(patches.device)
    if replayed is None and rule.select == "topk":
        return prune_top_k(tokens, chance[..., 0], min(_count(tokens, rule), patches.shape[1]), rule.package, _weight(chance, rule))
    if replayed is not None:
        keep = replayed.gather(1, tokens.places()[:, tokens.patches])
    else:
        keep = _decide(chance, torch.ones_like(chance[..., 0]), tokens, rule, run) > 0
    pad = (tokens.prefix, tokens.packages)
    widen = lambda t: torch.nn.functional.pad(t, pad).flatten()
    return prune_rows(tokens, widen(keep), widen(_weight(chance, rule)), rule.package)


def _single(tokens: Tokens, run: Run, rule: Rule, score: Score) -> Tokens:
    """One image while a graph is being traced: only its places say where the patches end."""
    assert run.replay is None
    place = tokens.place[0]
    rows = (place >= 0).nonzero()[:, 0]
    chance = score(tokens.x[0, rows], lambda f: f.mean(-2, keepdim=True))
    keep = _decide(chance[None], torch.ones_like(chance[None, :, 0]), tokens, rule, run)[0] > 0
    return _prune_some(tokens, rows, keep, chance, rule)


def _rows(tokens: Tokens, run: Run, rule: Rule, score: Score) -> Tokens:
    place = tokens.places().flatten()
    rows = (place >= 0).nonzero()[:, 0]
    image = tokens.image_of_row()[rows]
    patches = torch.bincount(image, minlength=tokens.images)
    chance = score(tokens.x.flatten(0, -2).index_select(0, rows), lambda f: _mean_by_image(f, image, patches).index_select(-2, image))
    replayed = run.replayed(rows.device)
    if replayed is not None:
        keep = replayed[image, place[rows]]
    else:
        # Per image the decision is the same as for that image alone: pad, decide, and read the rows back.
        column = torch.arange(len(rows), device=rows.device) - (patches.cumsum(0) - patches)[image]
        live = chance.new_zeros(tokens.images, int(patches.max()))
        live[image, column] = 1.0
        padded = chance.new_zeros(*live.shape, 2)
        padded[image, column] = chance
        keep = _decide(padded, live, tokens, rule, run)[image, column] > 0
    return _prune_some(tokens, rows, keep, chance, rule)


def _prune_some(tokens: Tokens, rows: Tensor, keep: Tensor, chance: Tensor, rule: Rule) -> Tokens:
    """Prunes where the decisions keep [R] and probabilities chance [R, 2] are those of the patch rows `rows` [R] only."""
    place = tokens.places().flatten()
    all_keep = torch.zeros_like(place, dtype=torch.bool).scatter(0, rows, keep)
    all_weight = chance.new_zeros(place.shape).scatter(0, rows, _weight(chance, rule))
    return prune_rows(tokens, all_keep, all_weight, rule.package)


def _count(tokens: Tokens, rule: Rule) -> int:
    return kept_count(rule.keep, tokens.grid[0] * tokens.grid[1])


def _weight(chance: Tensor, rule: Rule) -> Tensor:
    """Weight of each patch in the package token, should it be dropped."""
    return chance[..., 0] if rule.weighted else torch.ones_like(chance[..., 0])


def _decide(chance: Tensor, live: Tensor, tokens: Tokens, rule: Rule, run: Run) -> Tensor:
    """Deterministic decisions (0 or 1) [B, m] for probabilities [B, m, 2] and decision weights [B, m]."""
    score = chance[..., 0]
    if rule.select == "argmax":
        keep = (score >= chance[..., 1]).to(live.dtype)
        if run.block_tokens is not None:
            run.rescue(((keep * live).sum(1) == 0).nonzero()[:, 0].tolist())
        return at_least_one(keep, live, score) * (live > 0)
    index = top_k(score, live, min(_count(tokens, rule), score.shape[1]))
    return torch.zeros_like(live).scatter(1, index, 1.0) * (live > 0)


def _mean(features: Tensor, live: Tensor) -> Tensor:
    """Mean over kept patches: features [H, B, m, e], weights [B, m] -> [H, B, 1, e]."""
    weights = live / live.sum(1, keepdim=True)
    return (weights.to(features.dtype)[:, None] @ features)


def _mean_by_image(features: Tensor, image: Tensor, patches: Tensor) -> Tensor:
    """Mean over the rows of each image, summed in float32: features [H, R, e] -> [H, B, e]."""
    wide = at_least_float32(features)
    total = wide.new_zeros(features.shape[0], len(patches), features.shape[2]).index_add(1, image, wide)
    return (total / patches.to(wide.dtype)[:, None]).to(features.dtype)
