"""The one function that lets things go to zero: twice continuously differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def taper(x: Tensor, end: float, onset: float = 0.0) -> Tensor:
    """1 up to `onset * end`, 0 from `end` on, between them the quintic 1 - 10 t^3 + 15 t^4 - 6 t^5.

    Value, first and second derivative are continuous everywhere, so energies that pass through it give continuous
    forces, stresses and elastic constants.

    Args:
        x: any shape, distances (A) or wave numbers (1/A), not negative.
        end: where it reaches zero, in the unit of `x`.
        onset: the fraction of `end`, in [0, 1), at which it leaves one.
    Returns:
        the shape of `x`, between 0 and 1.
    """
    start = onset * end
    t = torch.clamp((x - start) / (end - start), 0.0, 1.0)
    return 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
