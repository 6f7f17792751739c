"""Pieces that encoders share: Gaussians in a distance, residual layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Smaller values are set to zero: no sum notices, and numbers below 1e-38 make float32 products many times slower.
_NOTHING = 1e-20


class Gaussians(nn.Module):
    """exp(-((x - mu) / width)^2) on equidistant centres, one centre apart in width."""

    centres: Tensor

    def __init__(self, low: float, high: float, number: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(low, high, number), persistent=False)
        self.width = (high - low) / (number - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., number)."""
        values = torch.exp(-(((x[..., None] - self.centres) / self.width) ** 2))
        return nn.functional.threshold(values, _NOTHING, 0.0)


class Residual(nn.Module):
    """x + W2 silu(W1 silu(x))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
