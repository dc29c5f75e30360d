"""Fixed-point numbers, emulated in floating point: what a board with b-bit arithmetic would hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fraction_bits(largest: float, bits: int = 16) -> int:
    """How many of `bits` bits stand behind the point so that numbers up to `largest` in size still fit: the finest such grid.

    bits: sign included, >= 2. largest: >= 0; for 0 every grid fits and bits - 1 is taken. May be negative (steps above 1), or more than
    `bits` where all numbers are small.
    """
    if largest == 0:
        return bits - 1
    fraction = bits - 1 - math.ceil(math.log2(largest))
    # The largest number is one step less than the power of two, so that a value just below it could round beyond the end.
    return fraction - (round(largest * 2.0**fraction) > 2 ** (bits - 1) - 1)


def fixed_point(x: Tensor, fraction: int, bits: int = 16) -> Tensor:
    """x rounded to multiples of 2^-fraction and clipped to [-2^(bits-1), 2^(bits-1) - 1] of them; half goes to even."""
    steps = torch.round(x.double() * 2.0**fraction).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (steps * 2.0**-fraction).to(x.dtype)
