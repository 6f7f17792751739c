"""A pair energy and its derivative from a table, in one compiled loop; differentiable further by its formula."""

# The types of the loop's arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from lrpot.compiled import compiled

INTERVALS = 1024
DEGREE = 5


class PairTable:
    """energy(r) taper(r) for distances up to a cutoff, with energy(r) = smooth(r) / r^power from a table of smooth(r).

    Polynomials of degree 5 on 1024 intervals; beside a smooth(r) that varies over an angstrom their error is that of
    rounding. Only the first derivative is tabulated: a derivative that is to be differentiated again comes from the
    formula.
    """

    def __init__(
        self,
        formula: Callable[[Tensor], Tensor],
        energy: Callable[[Tensor], Tensor],
        power: int,
        ends: tuple[float, float],
    ) -> None:
        """
        Args:
            formula: the whole pair energy, taper included, (E,) from (E,) distances, float64.
            energy: the same without taper.
            power: of 1 / r in it.
            ends: A, where the taper begins, and where it and the table end.
        """
        self.formula = formula
        self.power = power
        self.onset, self.cutoff = ends
        # in each interval through points that include both of its ends
        nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
        r = (np.arange(INTERVALS)[:, None] + nodes) * (self.cutoff / INTERVALS)
        # at r = 0 itself energy is infinite; smooth is as flat there as it is even
        r[0, 0] = 1e-3 * r[0, 1]
        with torch.no_grad():
            values = (energy(torch.from_numpy(r.ravel())).numpy() * r.ravel() ** power).reshape(r.shape)
        self.coefficients = np.linalg.solve(np.vander(nodes, increasing=True), values.T).T.copy()

    def __call__(self, distances: Tensor) -> Tensor:
        """(E,) from (E,), float64, eV/e^2 from A; zero from the cutoff on."""
        if distances.device.type != "cpu" or distances.dtype != torch.float64:
            return self.formula(distances)
        return _Pair.apply(distances, self)

    def values_and_slopes(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        r = distances.detach().contiguous()
        values, slopes = torch.empty_like(r), torch.empty_like(r)
        _look_up(r.numpy(), self.coefficients, self.power, self.onset, self.cutoff, values.numpy(), slopes.numpy())
        return values, slopes


class _Pair(Function):
    @staticmethod
    def forward(ctx: Any, distances: Tensor, table: PairTable) -> Tensor:
        values, slopes = table.values_and_slopes(distances)
        ctx.table = table
        ctx.save_for_backward(distances, slopes)
        return values

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, None]:
        distances, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            (slopes,) = torch.autograd.grad(ctx.table.formula(distances).sum(), distances, create_graph=True)
        return seed * slopes, None


@compiled
def _look_up(distances, coefficients, power, onset, cutoff, values, slopes):
    intervals = len(coefficients)
    inverse_step = intervals / cutoff
    for e in range(len(distances)):
        r = distances[e]
        if not r < cutoff:
            values[e] = slopes[e] = r - r  # zero, or not a number
            continue
        place = r * inverse_step
        interval = int(place)
        t = place - interval
        c = coefficients[interval]
        value = c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))))
        slope = (c[1] + t * (2 * c[2] + t * (3 * c[3] + t * (4 * c[4] + t * 5 * c[5])))) * inverse_step
        inverse = 1.0 / r
        for _ in range(power):
            value *= inverse
            slope *= inverse
        slope -= power * value * inverse
        if r > onset:
            x = (r - onset) / (cutoff - onset)
            taper = 1.0 - x * x * x * (10.0 - x * (15.0 - 6.0 * x))
            slope = slope * taper - value * 30.0 * x * x * (1.0 - x) * (1.0 - x) / (cutoff - onset)
            value *= taper
        values[e], slopes[e] = value, slope
