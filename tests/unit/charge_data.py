"""Crystals and liquids whose charges are known, for the tests of the prefit: labels by another Ewald sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.kspace import CoulombComplement, GaussianCoulomb, ReciprocalSum, splitting
from lrpot.structure import Structure, edge_vectors, make_structure

Pairs = Mapping[tuple[str, str], tuple[float, float]]  # A (eV) and rho (A) of A exp(-r / rho)

SAMPLES = Path(__file__).parents[2] / "datasets" / "nacl"
EWALD_CUTOFF = 7.0  # A, and 1/A: another splitting than that of the fields, and deeper

SALT: Pairs = {("Na", "Cl"): (1200.0, 0.32), ("Cl", "Cl"): (3000.0, 0.32), ("Na", "Na"): (400.0, 0.32)}
GALLIUM_NITRIDE: Pairs = {("Ga", "N"): (1500.0, 0.25), ("N", "N"): (800.0, 0.28)}
OXIDE: Pairs = {("Sr", "O"): (1400.0, 0.34), ("Ti", "O"): (2500.0, 0.25), ("O", "O"): (1000.0, 0.3)}


def coulomb_energy(structure: Structure, charges: Tensor) -> Tensor:
    """eV, of point charges (N, 1), with edges up to EWALD_CUTOFF."""
    kernel = GaussianCoulomb(splitting(EWALD_CUTOFF, EWALD_CUTOFF)[0])
    index = torch.zeros_like(structure.numbers)
    distances = torch.linalg.vector_norm(edge_vectors(structure), dim=1)
    energy = ReciprocalSum(kernel, EWALD_CUTOFF)(structure.positions, charges, structure.cell, index).sum()
    volume = torch.linalg.det(structure.cell).abs()
    complement = CoulombComplement(kernel, EWALD_CUTOFF)
    return energy + complement(charges, volume, index, structure.edge_index, distances).sum()


def labelled(atoms: Atoms, charges: Mapping[str, float], repulsion: Pairs, *, springs: float = 0.0) -> Structure:
    """Energy and forces of charges, of pair repulsions, and of springs (eV/A^2) between atoms closer than 1.25 A."""
    s = add_edges(make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc), EWALD_CUTOFF)
    s.positions = s.positions.requires_grad_()
    q = torch.tensor([[charges[symbol]] for symbol in atoms.symbols], dtype=torch.float64)
    distances = torch.linalg.vector_norm(edge_vectors(s), dim=1)
    energy = coulomb_energy(s, q) + 0.5 * _repulsion(atoms, repulsion, s.edge_index, distances)
    energy = energy + 0.5 * springs * (torch.relu(1.25 - distances) ** 2).sum()
    (gradient,) = torch.autograd.grad(energy, s.positions)
    return make_structure(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, energy=energy.item(), forces=-gradient
    )


def _repulsion(atoms: Atoms, repulsion: Pairs, edges: Tensor, distances: Tensor) -> Tensor:
    symbols = np.array(atoms.get_chemical_symbols())
    strength, length = np.zeros(edges.shape[1]), np.ones(edges.shape[1])
    for (a, b), (of_pair, rho) in repulsion.items():
        first, second = symbols[edges[0]], symbols[edges[1]]
        mask = ((first == a) & (second == b)) | ((first == b) & (second == a))
        strength[mask], length[mask] = of_pair, rho
    return (torch.from_numpy(strength) * torch.exp(-distances / torch.from_numpy(length))).sum()


def crystals(perfect: Atoms, n: int, rattle: float, strain: float, seed: int = 0) -> list[Atoms]:
    """Rattled copies in random triclinic deformations of the cell."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = perfect.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += rattle * rng.normal(size=atoms.positions.shape)
        found.append(atoms)
    return found


def rock_salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2)


def caesium_chloride() -> Atoms:
    return bulk("NaCl", "cesiumchloride", 3.4) * (2, 2, 2)


def perovskite() -> Atoms:
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("SrTiO3", scaled_positions=sites, cell=3.9 * np.eye(3), pbc=True)


def brine(seed: int) -> Atoms:
    """Six waters, turned at random and vibrating, and a pair of ions in a cube of 9 A."""
    rng = np.random.default_rng(seed)
    sites = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * 4.5 + 1.0
    atoms = Atoms(cell=9.0 * np.eye(3), pbc=True)
    for site in sites[:6]:
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]) @ turn
        atoms += Atoms("OHH", site + 0.3 * rng.normal(size=3) + water + 0.03 * rng.normal(size=(3, 3)))
    return atoms + Atoms("NaCl", sites[6:] + 0.3 * rng.normal(size=(2, 3)))


def to_atoms(structure: Structure) -> Atoms:
    """With the forces, for a file."""
    atoms = Atoms(
        structure.numbers.numpy(), structure.positions.detach().numpy(), cell=structure.cell[0].numpy(), pbc=True
    )
    atoms.calc = SinglePointCalculator(atoms, energy=float(structure.energy), forces=structure.forces.numpy())
    return atoms
