"""A DeiT with SPViT's selectors, one image at a time: tokens are a list, pruning removes from the list (or masks)."""

import torch
from torch import Tensor

from naive.pruning import argmax_decisions, at_least_one, gumbel_decisions, package_token, top_k_decisions
from naive.selector import gelu, layer_norm, selector


def policy_softmax(scores: Tensor, live: Tensor) -> Tensor:
    """A_ij = exp(S_ij) P_ij / sum_j exp(S_ij) P_ij with P_ij = D_j and P_ii = 1 (semantics.md 1); scores [n, m], live [m]."""
    rows = []
    for i in range(scores.shape[0]):
        weights = [torch.exp(scores[i, j] - scores[i].max()) * (1.0 if i == j else live[j]) for j in range(scores.shape[1])]
        total = sum(weights)
        rows.append(torch.stack([w / total for w in weights]))
    return torch.stack(rows)


def attention(weights: dict[str, Tensor], x: Tensor, live: Tensor, heads: int) -> Tensor:
    """Softmax attention of every head over the tokens x [n, D] with decision weights live [n]."""
    width = x.shape[1] // heads
    q, k, v = (x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]).chunk(3, dim=1)
    mixed = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        a = policy_softmax(q[:, part] @ k[:, part].T / width**0.5, live)
        mixed.append(a @ v[:, part])
    return torch.cat(mixed, 1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]


def block(weights: dict[str, Tensor], x: Tensor, live: Tensor, heads: int) -> Tensor:
    """x + attention(norm(x)), then x + MLP(norm(x)); timm's eps of 1e-6."""
    norm = lambda name, x: torch.stack([layer_norm(row, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6) for row in x])
    x = x + attention(weights, norm("norm1", x), live, heads)
    hidden = gelu(norm("norm2", x) @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"])
    return x + hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


def embed(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """Patches of an image [3, H, W], row by row, behind the class token, with positions."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    side, patches = kernel.shape[-1], []
    for row in range(0, image.shape[1], side):
        for column in range(0, image.shape[2], side):
            field = image[:, row : row + side, column : column + side]
            patches.append((kernel * field).sum((1, 2, 3)) + bias)
    return torch.cat([weights["cls_token"][0], torch.stack(patches)]) + weights["pos_embed"][0]


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def depth_of(weights: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))


def classify(weights: dict[str, Tensor], cls: Tensor) -> Tensor:
    """Logits of the class token."""
    return weights["head.weight"] @ layer_norm(cls, weights["norm.weight"], weights["norm.bias"], 1e-6) + weights["head.bias"]


def packed(weights: dict[str, Tensor], image: Tensor, heads: int, after: tuple[int, ...], counts: list[int] | None,
           package: bool) -> tuple[Tensor, list[list[int]]]:
    """Logits and the patches left after each stage; tokens are really removed.

    counts: patches to keep at each stage (topk), or None (argmax).
    """
    x = embed(weights, image)
    cls, patches, places, packages = x[:1], x[1:], list(range(len(x) - 1)), x[:0]
    left = []
    for number in range(1, depth_of(weights) + 1):
        sequence = torch.cat([cls, patches, packages])
        sequence = block(under(weights, f"blocks.{number - 1}."), sequence, torch.ones(len(sequence), dtype=x.dtype), heads)
        cls, patches, packages = sequence.split([1, len(patches), len(packages)])
        if number not in after:
            continue
        chance = selector(under(weights, f"spvit.selectors.{number}."), patches, torch.ones(len(patches), dtype=x.dtype))
        alive = [True] * len(patches)
        keep = argmax_decisions(chance, alive) if counts is None else top_k_decisions(chance[:, 0].tolist(), alive, counts[len(left)])
        if package and not all(keep):
            gone = torch.tensor([not k for k in keep], dtype=x.dtype)
            packages = torch.cat([packages, package_token(patches, chance, gone)[None]])
        patches = torch.stack([p for p, k in zip(patches, keep) if k])
        places = [p for p, k in zip(places, keep) if k]
        left.append(places)
    return classify(weights, cls[0]), left


def masked(weights: dict[str, Tensor], image: Tensor, heads: int, after: tuple[int, ...], noise: list[Tensor],
           package: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and the decisions D * D' after each stage in the training form, for given Gumbel noise ([N, 2] a stage)."""
    x = embed(weights, image)
    patches = len(x) - 1
    live, decisions = torch.ones(len(x), dtype=x.dtype), []
    for number in range(1, depth_of(weights) + 1):
        x = block(under(weights, f"blocks.{number - 1}."), x, live, heads)
        if number not in after:
            continue
        grid, before = x[1 : 1 + patches], live[1 : 1 + patches]
        chance = selector(under(weights, f"spvit.selectors.{number}."), grid, before)
        alive = [bool(b > 0) for b in before]
        d = at_least_one(gumbel_decisions(chance, noise[len(decisions)]), chance[:, 0], alive)
        now = before * d
        dropped = before - now
        live = torch.cat([live[:1], now, live[1 + patches :]])
        if package:
            some = bool(dropped.detach().sum() > 0)
            x = torch.cat([x, package_token(grid, chance, dropped)[None] if some else torch.zeros_like(x[:1])])
            live = torch.cat([live, torch.tensor([float(some)], dtype=x.dtype)])
        decisions.append(now)
    return classify(weights, x[0]), decisions
