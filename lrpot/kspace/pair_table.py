"""Sums of a pair energy, read with its derivative from a table, in compiled loops; differentiable further by its
formula."""

# The types of the loops' arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from lrpot.compiled import compiled

DEGREE = 5
INTERVALS_PER_LENGTH = 200  # the error of the polynomials is then that of rounding


class PairTable:
    """energy(r) taper(r) for distances up to a cutoff, with energy(r) = smooth(r) / r^power from a table of smooth(r).

    Polynomials of degree 5 in equal intervals. Only the first derivative is tabulated: a derivative that is to be
    differentiated again comes from the formula.
    """

    def __init__(
        self,
        formula: Callable[[Tensor], Tensor],
        energy: Callable[[Tensor], Tensor],
        power: int,
        length: float,
        ends: tuple[float, float],
    ) -> None:
        """
        Args:
            formula: the whole pair energy, taper included, (E,) from (E,) distances, float64.
            energy: the same without taper.
            power: of 1 / r in it.
            length: A, over which smooth(r) varies.
            ends: A, where the taper begins, and where it and the table end.
        """
        self.formula = formula
        self.power = power
        self.onset, self.cutoff = ends
        intervals = math.ceil(INTERVALS_PER_LENGTH * self.cutoff / length)
        # in each interval through points that include both of its ends
        nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
        r = (np.arange(intervals)[:, None] + nodes) * (self.cutoff / intervals)
        # at r = 0 itself the energy is infinite; smooth(r) is flat there
        r[0, 0] = 1e-3 * r[0, 1]
        with torch.no_grad():
            values = (energy(torch.from_numpy(r.ravel())).numpy() * r.ravel() ** power).reshape(r.shape)
        self.coefficients = np.linalg.solve(np.vander(nodes, increasing=True), values.T).T.copy()

    def per_atom(self, charges: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """(N,), eV: half of the energy of every pair, to each of its atoms; differentiable.

        Args:
            charges: (N, C), e. distances: (E,), A. Both float64.
            edge_index: (2, E); every pair in both directions.
        """
        if distances.device.type != "cpu":
            return self.plainly(charges, edge_index, distances)
        return _PerAtom.apply(charges, distances, edge_index, self)

    def plainly(self, charges: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """`per_atom` in tensor operations, with the formula."""
        neighbour, centre = edge_index
        products = charges.index_select(0, neighbour) * charges.index_select(0, centre)
        pairs = 0.5 * products.sum(dim=1) * self.formula(distances)
        return charges.new_zeros(len(charges)).index_add(0, centre, pairs)

    def look_up(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The pair energy of unit charges and its derivative, (E,), zero from the cutoff on."""
        r = distances.detach().contiguous()
        values, slopes = torch.empty_like(r), torch.empty_like(r)
        _pairs(r.numpy(), self.coefficients, self.power, self.onset, self.cutoff, values.numpy(), slopes.numpy())
        return values, slopes


class _PerAtom(Function):
    @staticmethod
    def forward(ctx: Any, charges: Tensor, distances: Tensor, edge_index: Tensor, table: PairTable) -> Tensor:
        values, slopes = table.look_up(distances)
        energies = charges.new_zeros(len(charges))
        _sum_pairs(*_arrays(edge_index, charges, values), energies.numpy())
        ctx.table, ctx.edge_index = table, edge_index
        ctx.save_for_backward(charges, distances, values, slopes)
        return energies

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        charges, distances, values, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            # by views: charges may depend on distances, and this derivative must not follow that
            charges, distances = charges.view_as(charges), distances.view_as(distances)
            energies = ctx.table.plainly(charges, ctx.edge_index, distances)
            inputs = [x for x in (charges, distances) if x.requires_grad]
            found = iter(torch.autograd.grad(energies, inputs, seed, create_graph=True))
            return *(next(found) if x.requires_grad else None for x in (charges, distances)), None, None
        by_charges, by_distances = torch.zeros_like(charges), torch.empty_like(distances)
        arrays = _arrays(ctx.edge_index, charges, values, slopes, seed)
        _differentiate_pairs(*arrays, by_charges.numpy(), by_distances.numpy())
        return by_charges, by_distances, None, None


def _arrays(edge_index: Tensor, *tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().contiguous().numpy() for x in (*edge_index, *tensors)]


@compiled
def _pairs(distances, coefficients, power, onset, cutoff, values, slopes):
    """Pair energies and their derivatives, (E,), at (E,) distances."""
    intervals = len(coefficients)
    inverse_step = intervals / cutoff
    for e in range(len(distances)):
        r = distances[e]
        if not r < cutoff:
            values[e] = slopes[e] = r - r  # zero, or not a number
            continue
        place = r * inverse_step
        interval = min(int(place), intervals - 1)  # just below the cutoff, the place may be rounded up
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


@compiled
def _sum_pairs(neighbour, centre, charges, values, energies):
    """Add to the atoms' energies (N,)."""
    for e in range(len(values)):
        i, j = centre[e], neighbour[e]
        product = 0.0
        for channel in range(charges.shape[1]):
            product += charges[i, channel] * charges[j, channel]
        energies[i] += 0.5 * product * values[e]


@compiled
def _differentiate_pairs(neighbour, centre, charges, values, slopes, seed, by_charges, by_distances):
    """The gradient of the sum of seed (N,) times energies: added to by_charges (N, C), written to by_distances (E,)."""
    for e in range(len(values)):
        i, j = centre[e], neighbour[e]
        half = 0.5 * seed[i]
        product = 0.0
        for channel in range(charges.shape[1]):
            product += charges[i, channel] * charges[j, channel]
            by_charges[i, channel] += half * values[e] * charges[j, channel]
            by_charges[j, channel] += half * values[e] * charges[i, channel]
        by_distances[e] = half * product * slopes[e]
