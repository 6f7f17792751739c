"""Pieces that encoders share: Gaussians in a distance, normalisation, residual layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# exp(-40) is below the rounding of 1 in any precision.
FARTHEST_TAIL = 40.0


class Gaussians(nn.Module):
    """exp(-((x - mu) / width)^2) on equidistant centres, one centre apart in width."""

    centres: Tensor

    def __init__(self, low: float, high: float, number: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(low, high, number), persistent=False)
        self.width = (high - low) / (number - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., number)."""
        square = ((x[..., None] - self.centres) / self.width) ** 2
        # nothing is lost, and no number so small that processors fall into their slow path
        return torch.exp(-square).masked_fill(square > FARTHEST_TAIL, 0.0)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of a single row as it takes those of prediction: one row has no spread."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Residual(nn.Module):
    """x + W2 silu(W1 silu(x))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
