"""Decisions, package tokens and the ratio loss of SPViT, token by token."""

import torch
from torch import Tensor


def survivor(score: list[float], alive: list[bool]) -> int:
    """The live token with the best score (semantics.md 4)."""
    best = None
    for n in range(len(score)):
        if alive[n] and (best is None or score[n] > score[best]):
            best = n
    return best


def gumbel_decisions(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Hard decisions [N] with the gradient of the soft ones (Eq. 7, tau = 1), for given Gumbel noise [N, 2]."""
    rows = []
    for n in range(len(probabilities)):
        e = torch.exp(torch.log(probabilities[n]) + noise[n])
        soft = e[0] / (e[0] + e[1])
        rows.append(float(e[0] >= e[1]) + (soft - soft.detach()))
    return torch.stack(rows)


def at_least_one(decisions: Tensor, score: Tensor, alive: list[bool]) -> Tensor:
    """Decisions [N] that keep the best live token where they would keep none; its gradient stays what it was."""
    if any(a and d > 0 for a, d in zip(alive, decisions)):
        return decisions
    best = survivor(score.tolist(), alive)
    return torch.stack([(d - d.detach()) + 1 if n == best else d for n, d in enumerate(decisions)])


def argmax_decisions(probabilities: Tensor, alive: list[bool]) -> list[bool]:
    """Keeps the live tokens whose keep probability is at least the other one, and one in any case."""
    keep = [alive[n] and float(probabilities[n, 0]) >= float(probabilities[n, 1]) for n in range(len(alive))]
    if not any(keep):
        keep[survivor(probabilities[:, 0].tolist(), alive)] = True
    return keep


def top_k_decisions(score: list[float], alive: list[bool], k: int) -> list[bool]:
    """Keeps the k best-scored live tokens, one after the other."""
    keep = [False] * len(score)
    for _ in range(min(k, sum(alive))):
        keep[survivor(score, [a and not k for a, k in zip(alive, keep)])] = True
    return keep


def package_token(x: Tensor, probabilities: Tensor, dropped: Tensor) -> Tensor:
    """Eq. 8: the mean of the dropped tokens, weighted with their keep probabilities; `dropped` [N] is 1 where one went."""
    above = sum(dropped[n] * probabilities[n, 0] * x[n] for n in range(len(x)))
    below = sum(dropped[n] * probabilities[n, 0] for n in range(len(x)))
    return above / below


def ratio_loss(decisions: list[Tensor], rho: list[float]) -> Tensor:
    """Eq. 11 with a rate (1/N) in place of the count, and the mean over the L selectors; decisions[i] is [B, N]."""
    total = 0.0
    for i in range(len(rho)):
        images, tokens = decisions[i].shape
        rate = sum(decisions[i][b, j] for b in range(images) for j in range(tokens)) / (images * tokens)
        total = total + (1 - rho[i] - rate) ** 2
    return total / len(rho)
