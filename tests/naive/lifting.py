"""The lifting scheme of IRET, sample by sample in float64 (Eqs. 8-12), and its two-dimensional form (Fig. 9)."""

import torch
from torch import Tensor, nn


def operator(signal: Tensor, layers: nn.Sequential) -> Tensor:
    """U or P on one line of samples, signal [C, n]: width-3 convolution, ReLU, 1x1 convolution, tanh; zeros beyond the ends."""
    first, second = layers[0], layers[2]
    taps = first.weight.reshape(*first.weight.shape[:2], 3)
    length = signal.shape[1]
    columns = []
    for n in range(length):
        hidden = first.bias
        for k in range(3):
            if 0 <= n + k - 1 < length:
                hidden = hidden + taps[:, :, k] @ signal[:, n + k - 1]
        hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
        columns.append(torch.tanh(second.weight[:, :, 0, 0] @ hidden + second.bias))
    return torch.stack(columns, 1)


def lift(signal: Tensor, step: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One line [C, 2n] -> (c, d, Loss(P), Loss(U)) with the operators of `step`; the losses are the sums as printed."""
    pairs = range(signal.shape[1] // 2)
    even = torch.stack([signal[:, 2 * n] for n in pairs], 1)  # Eq. 8
    odd = torch.stack([signal[:, 2 * n + 1] for n in pairs], 1)
    updated = operator(odd, step.update)
    c = even + updated  # Eq. 9
    predicted = operator(c, step.predict)
    d = odd - predicted  # Eq. 10
    loss_p = sum(((predicted[:, n] - odd[:, n]) ** 2).sum() for n in pairs)  # Eq. 11
    loss_u = sum(((updated[:, n] - (odd[:, n] - even[:, n])) ** 2).sum() for n in pairs)  # Eq. 12
    return c, d, loss_p, loss_u


def rows(x: Tensor, step: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lift` of every row of a map x [C, h, w], losses divided by the number of samples of c."""
    low, high, loss_p, loss_u = zip(*(lift(x[:, i], step) for i in range(x.shape[1])))
    low, high = torch.stack(low, 1), torch.stack(high, 1)
    return low, high, sum(loss_p) / low.numel(), sum(loss_u) / low.numel()


def columns(x: Tensor, step: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same down the columns."""
    low, high, loss_p, loss_u = rows(x.mT, step)
    return low.mT, high.mT, loss_p, loss_u


def lift_2d(features: Tensor, sampler: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Features [C, H, W] -> (LL, LH, HL, HH stacked [4, C, H/2, W/2], Loss(P), Loss(U)) over the three steps."""
    low, high, *first = rows(features, sampler.horizontal)
    ll, lh, *second = columns(low, sampler.vertical_low)
    hl, hh, *third = columns(high, sampler.vertical_high)
    losses = [a + b + c for a, b, c in zip(first, second, third)]
    return torch.stack([ll, lh, hl, hh]), *losses
