"""What a model has seen: how close atoms came in its training set and how crowded they were; what lies beyond."""

# The types of the loop's arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from lrpot.compiled import compiled
from lrpot.smooth import taper
from lrpot.structure import MAX_ATOMIC_NUMBER, Structure, edge_vectors

# What counts as beyond: so much closer than any pair, relative; more or less crowded than any atom, in neighbours at no
# distance. Vibrations in other cells than those of the training set stay below both.
CLOSER, CROWDING = 0.05, 0.5

# Structures that are looked at, evenly chosen from a larger set.
MOST_STRUCTURES = 20_000


class OutsideTrainingWarning(UserWarning):
    """A structure with something that was nowhere in the training set of the model."""


@dataclass(frozen=True)
class Coverage:
    """Extremes of a training set.

    Attributes:
        cutoff: A, up to which neighbours count.
        closest: A, the shortest distance of each pair of elements, such as "Na-Cl", the lighter one first.
        crowding: least and most crowded atom of each element: the sum of `taper` over the distances of its neighbours.
    """

    cutoff: float
    closest: dict[str, float]
    crowding: dict[str, tuple[float, float]]

    @cached_property
    def limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By atomic number: (Z, Z) shortest distances that are still within, A; infinite for pairs that were no
        neighbours. (Z,) least and (Z,) most crowding, dimensionless."""
        shortest = np.full((MAX_ATOMIC_NUMBER + 1, MAX_ATOMIC_NUMBER + 1), np.inf)
        for pair, distance in self.closest.items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            shortest[a, b] = shortest[b, a] = (1.0 - CLOSER) * distance
        least = np.full(MAX_ATOMIC_NUMBER + 1, -np.inf)
        most = -least
        for symbol, (low, high) in self.crowding.items():
            least[atomic_numbers[symbol]], most[atomic_numbers[symbol]] = low - CROWDING, high + CROWDING
        return shortest, least, most


def coverage_of(structures: Sequence[Structure], cutoff: float) -> Coverage:
    """The extremes of some structures.

    Args:
        structures: with their edges. cutoff: A, of these edges.
    """
    closest: dict[str, float] = {}
    crowding: dict[str, tuple[float, float]] = {}
    step = -(-len(structures) // MOST_STRUCTURES)
    for place in range(0, len(structures), step):
        found = _extremes(structures[place], cutoff)
        for pair, distance in found.closest.items():
            closest[pair] = min(distance, closest.get(pair, distance))
        for symbol, (low, high) in found.crowding.items():
            before = crowding.get(symbol, (low, high))
            crowding[symbol] = (min(low, before[0]), max(high, before[1]))
    return Coverage(cutoff, closest, crowding)


def beyond(seen: Coverage, structure: Structure) -> str | None:
    """What of a structure lies outside the training set, in words; None if nothing does.

    Args:
        seen: of the model. structure: one, with its edges, not on a GPU.
    """
    if _within(seen, structure):
        return None
    found = _extremes(structure, seen.cutoff)
    for pair, distance in found.closest.items():
        nearest = seen.closest.get(pair)
        if nearest is None:
            return f"{pair} are neighbours, {distance:.3g} A apart, and nowhere in the training set"
        if distance < (1.0 - CLOSER) * nearest:
            return f"{pair} are {distance:.3g} A apart, in the training set at least {nearest:.3g} A"
    for symbol, (low, high) in found.crowding.items():
        least, most = seen.crowding.get(symbol, (low, high))
        if low < least - CROWDING or high > most + CROWDING:
            other, limit = (low, least) if low < least - CROWDING else (high, most)
            more = "fewer" if other < limit else "more"
            return f"an atom of {symbol} has {more} neighbours ({other:.3g}) than any in the training set ({limit:.3g})"
    return None


def _within(seen: Coverage, structure: Structure) -> bool:
    """Whether `beyond` has nothing to say; quick, for it is asked in every step of MD."""
    neighbour, centre = structure.edge_index.contiguous().numpy()
    numbers = structure.numbers.numpy()
    crowding, within = np.zeros(len(numbers)), np.ones(1, dtype=np.bool_)
    geometry = structure.positions.detach().numpy(), structure.cell[0].numpy(), structure.edge_shift.numpy()
    _compare(*geometry, numbers, neighbour, centre, seen.cutoff, *seen.limits, crowding, within)
    return bool(within[0])


@compiled
def _compare(positions, cell, shift, numbers, neighbour, centre, cutoff, shortest, least, most, crowding, within):
    """Set within (1,) to False where an edge or an atom is beyond the limits; crowding (N,) starts as zeros."""
    for e in range(len(centre)):
        i, j = centre[e], neighbour[e]
        square = 0.0
        for x in range(3):
            part = positions[j, x] - positions[i, x]
            for axis in range(3):
                part += shift[e, axis] * cell[axis, x]
            square += part * part
        r = math.sqrt(square)
        if r < cutoff:
            if r < shortest[numbers[j], numbers[i]]:
                within[0] = False
            t = r / cutoff
            crowding[i] += 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)  # `lrpot.smooth.taper`
    for i in range(len(numbers)):
        if not least[numbers[i]] <= crowding[i] <= most[numbers[i]]:
            within[0] = False


def _extremes(structure: Structure, cutoff: float) -> Coverage:
    distances = torch.linalg.vector_norm(edge_vectors(structure).detach(), dim=1)
    near = distances < cutoff
    (neighbour, centre), distances = structure.edge_index[:, near], distances[near]
    numbers = structure.numbers
    ends = torch.stack([numbers[neighbour], numbers[centre]]).sort(dim=0).values
    pairs, which = torch.unique(ends[0] * (MAX_ATOMIC_NUMBER + 1) + ends[1], return_inverse=True)
    shortest = distances.new_full((len(pairs),), torch.inf).scatter_reduce(0, which, distances, "amin")
    crowding = distances.new_zeros(len(numbers)).index_add(0, centre, taper(distances, cutoff))
    names = (divmod(pair, MAX_ATOMIC_NUMBER + 1) for pair in pairs.tolist())
    return Coverage(
        cutoff,
        {f"{chemical_symbols[a]}-{chemical_symbols[b]}": d for (a, b), d in zip(names, shortest.tolist(), strict=True)},
        {
            chemical_symbols[z]: (float(crowding[numbers == z].min()), float(crowding[numbers == z].max()))
            for z in numbers.unique().tolist()
        },
    )
