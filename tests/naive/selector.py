"""SPViT's token selector (section 4.1), head by head and token by token, as the equations stand."""

import math

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Phi(x)."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """One vector, normalised by its own mean and (biased) variance."""
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def softmax(x: Tensor) -> Tensor:
    return torch.exp(x) / torch.exp(x).sum()


def selector(weights: dict[str, Tensor], x: Tensor, kept: Tensor) -> Tensor:
    """Keep and drop probabilities T~ [N, 2] of the tokens x [N, C], of which `kept` [N] (weights D) are there.

    weights: the selector's parameters by name; a head's linears are stored as inputs x outputs.
    """
    tokens, heads, width = len(x), len(weights["norm.weight"]), x.shape[1] // len(weights["norm.weight"])
    scores, importance = {}, {}
    for i in range(heads):
        linear = lambda name, value: value @ weights[f"{name}.weight"][i] + weights[f"{name}.bias"][i]
        local = []
        for n in range(tokens):
            part = x[n, i * width : (i + 1) * width]
            normed = layer_norm(part, weights["norm.weight"][i], weights["norm.bias"][i])
            local.append(gelu(linear("feature", normed)))  # Eq. 1
        shared = sum(kept[n] * local[n] for n in range(tokens)) / sum(kept[n] for n in range(tokens))  # Eq. 2
        for n in range(tokens):
            hidden = gelu(linear("hidden1", torch.cat([local[n], shared])))
            scores[i, n] = softmax(linear("score", gelu(linear("hidden2", hidden))))  # Eq. 3
    for n in range(tokens):
        means = torch.stack([x[n, i * width : (i + 1) * width].sum() / width for i in range(heads)])  # Eq. 4, over d
        hidden = gelu(weights["squeeze.weight"] @ means + weights["squeeze.bias"])
        importance[n] = 1 / (1 + torch.exp(-(weights["excite.weight"] @ hidden + weights["excite.bias"])))  # Eq. 5
    rows = []
    for n in range(tokens):
        top = sum(scores[i, n] * importance[n][i] for i in range(heads))
        rows.append(top / sum(importance[n][i] for i in range(heads)))  # Eq. 6
    return torch.stack(rows)
