"""A classical potential of GaN, thousands of times quicker than any electronic structure: it finds plausible places
for the atoms around a defect, and moves them as heat does. It labels nothing.

Tersoff's form with the parameters of J. Nord, K. Albe, P. Erhart, K. Nordlund, "Modelling of compound semiconductors:
analytical bond-order potential for gallium, nitrogen and gallium nitride", J. Phys.: Condens. Matter 15, 5649 (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from vesin import NeighborList

ELEMENTS = ("Ga", "N")
GA = ELEMENTS.index("Ga")


class Pair(NamedTuple):
    """A e^(-l1 r) - b B e^(-l2 r); b = (1 + zeta)^(-1/2) counts the neighbours k of atom i by the g and the cutoff of
    the pair (i, k)."""

    A: float  # eV
    B: float  # eV
    l1: float  # 1/A
    l2: float  # 1/A
    gamma: float
    c: float
    d: float
    h: float
    l3: float  # 1/A
    R: float  # A, middle of the interval where the cutoff function falls from 1 to 0
    D: float  # A, half of its width


_GA_N = Pair(6136.44, 3864.27, 2.93516, 2.63906, 0.001632, 65.207, 2.821, -0.518, 0.0, 2.90, 0.20)
PAIRS = {
    ("Ga", "Ga"): Pair(535.199, 410.132, 1.60916, 1.4497, 0.007874, 1.918, 0.75, -0.3013, 1.846, 2.87, 0.15),
    ("Ga", "N"): _GA_N,
    ("N", "Ga"): _GA_N,
    ("N", "N"): Pair(1044.77, 423.769, 3.55779, 2.38426, 0.76612, 0.178493, 0.20172, -0.045238, 0.0, 2.20, 0.20),
}
CUTOFF = max(pair.R + pair.D for pair in PAIRS.values())  # A
# Pair.<name> by the place of both elements in ELEMENTS, (11, 2, 2)
_TABLE = torch.tensor([[PAIRS[a, b] for b in ELEMENTS] for a in ELEMENTS], dtype=torch.float64).permute(2, 0, 1)


class Wall(NamedTuple):
    """Energy k (r - R)^2 / 2 of each pair of Ga nearer than R."""

    k: float = 0.0  # eV/A^2
    R: float = 0.0  # A


class Tersoff(Calculator):
    """Energy (eV) and forces (eV/A) of Ga and N, periodic in all directions.

    Args:
        wall: what keeps Ga apart beyond the published potential.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, wall: Wall = Wall()) -> None:
        super().__init__()
        self.wall = wall

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(self.atoms.positions, requires_grad=True)
        energy = _energy(self.atoms, positions, self.wall)
        (gradient,) = torch.autograd.grad(energy, positions)
        self.results: dict[str, Any] = {"energy": energy.item(), "forces": -gradient.numpy()}


def _energy(atoms: Atoms, positions: torch.Tensor, wall: Wall) -> torch.Tensor:
    """Energy as a function of the positions (N, 3), A, by tables of each atom's M neighbours at most."""
    centre, other, shift = NeighborList(cutoff=CUTOFF, full_list=True, sorted=True).compute(
        atoms.positions, atoms.cell.array, True, "ijS"
    )
    centre, other = (torch.from_numpy(index.astype(np.int64)) for index in (centre, other))
    counts = torch.bincount(centre, minlength=len(atoms))
    place = torch.arange(len(centre)) - (counts.cumsum(0) - counts)[centre]
    shape = (len(atoms), max(int(counts.max()), 1))
    there = torch.zeros(shape, dtype=torch.bool).index_put((centre, place), torch.tensor(True))

    vectors = positions[other] - positions[centre] + torch.from_numpy(shift @ atoms.cell.array)
    # an empty place holds a vector beyond the cutoff, so that nothing there is zero or infinite
    r_vector = torch.full((*shape, 3), CUTOFF, dtype=torch.float64).index_put((centre, place), vectors)
    r = r_vector.norm(dim=-1)
    species = torch.tensor([ELEMENTS.index(symbol) for symbol in atoms.symbols])
    neighbour = torch.zeros(shape, dtype=torch.int64).index_put((centre, place), species[other])
    A, B, l1, l2, gamma, c, d, h, l3, R, D = _TABLE[:, species[:, None], neighbour]

    inside = ((r - R) / D).clamp(-1.0, 1.0)
    cutoff = torch.where(there, 0.5 - 0.5 * torch.sin(0.5 * torch.pi * inside), 0.0)
    # [i, j, k]: neighbour k of atom i as seen from its bond with j
    cosine = torch.einsum("ija,ika->ijk", r_vector, r_vector) / (r[:, :, None] * r[:, None, :])
    gamma, c, d, h, l3 = (value[:, None, :] for value in (gamma, c, d, h, l3))
    angular = gamma * (1 + (c / d) ** 2 - c**2 / (d**2 + (h - cosine) ** 2))
    farther = torch.exp(l3 * (r[:, :, None] - r[:, None, :]))
    other_than_j = ~torch.eye(shape[1], dtype=torch.bool)
    zeta = (other_than_j * cutoff[:, None, :] * angular * farther).sum(dim=-1)
    bonds = A * torch.exp(-l1 * r) - (1 + zeta).rsqrt() * B * torch.exp(-l2 * r)
    both_ga = there & (species[:, None] == GA) & (neighbour == GA)
    pushed = both_ga * (wall.R - r).clamp(min=0.0)
    return 0.5 * (cutoff * bonds + 0.5 * wall.k * pushed**2).sum()
