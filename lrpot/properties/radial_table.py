"""Functions of the distance that a network learns, from a table: one matrix product for its rows, not for all edges.

Properties need no derivative by positions, so four neighbouring rows and the cubic through them are enough; the table
is made anew from the weights in every step, and gradients reach them through it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Rows of the table per unit; Gaussians in -0.75 / d are 1/32 wide: 16 rows for each.
ROWS_PER_UNIT = 510


@dataclass(frozen=True)
class Interpolation:
    """Which rows an edge reads, and with which weights.

    Attributes:
        x: (X,) where the rows are. rows: (E, 4). weights: (E, 4).
    """

    x: Tensor
    rows: Tensor
    weights: Tensor


def interpolation(x: Tensor, low: float, high: float, dtype: torch.dtype) -> Interpolation:
    """Of places (E,) between low and high; rows that no edge reads are not there."""
    step = 1.0 / ROWS_PER_UNIT
    n = int((high - low) / step) + 4
    # rows are counted from the upper end, so that they are the same wherever the lower one is
    place = (x.to(torch.float64) - high) / step + n - 1
    start = (place.floor().long() - 1).clamp(0, n - 4)
    t = place - start
    # Lagrange's polynomials on rows 0, 1, 2, 3
    weights = torch.stack(
        [
            -(t - 1) * (t - 2) * (t - 3) / 6,
            t * (t - 2) * (t - 3) / 2,
            -t * (t - 1) * (t - 3) / 2,
            t * (t - 1) * (t - 2) / 6,
        ],
        dim=1,
    )
    used, rows = (start[:, None] + torch.arange(4, device=x.device)).unique(return_inverse=True)
    return Interpolation((high - step * (n - 1 - used)).to(dtype), rows, weights.to(dtype))


class RadialTable:
    """A learned function of the distance at all edges, followed by a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], place: Interpolation) -> None:
        """
        Args:
            function: (X,) -> (X, F). place: of the edges.
        """
        self.values = function(place.x)
        n_edges = len(place.rows)
        pointers = torch.arange(0, 4 * n_edges + 1, 4, device=place.rows.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.matrix = torch.sparse_csr_tensor(
                pointers,
                place.rows.flatten(),
                place.weights.flatten(),
                (n_edges, len(place.x)),
                check_invariants=False,
            )

    def __call__(self, layer: nn.Linear) -> Tensor:
        """(E, out): layer(function(d))."""
        return self.matrix @ layer(self.values)
