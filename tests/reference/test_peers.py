"""The reciprocal half of the Ewald sum, with self term and background, against torch-pme and nvalchemi-toolkit-ops, and
second derivatives against matscipy. Random triclinic cells, float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from lrpot.kspace import CoulombComplement, GaussianCoulomb, ReciprocalSum, k_lattice, reciprocal_cell, splitting
from lrpot.structure import Structure, edge_vectors
from lrpot.units import COULOMB_CONSTANT

SIGMA = 0.8  # A
K_CUTOFF = 9.0  # 1/A; what is beyond is exp(-0.5 (0.8 * 9)^2) = 6e-12 of the rest
TOLERANCE = 1e-9  # relative to the largest component
NUFFT_TOLERANCE = 1e-5  # of energy, forces and cell gradient at tolerance 1e-6 in the forces
HESSIAN_TOLERANCE = 1e-7  # matscipy's Coulomb constant has eight digits

CASES = ("neutral", "charged", "left-handed")


@pytest.fixture
def system(request, random_crystal) -> tuple[Structure, Tensor]:
    s = random_crystal(3, 8, left_handed=request.param == "left-handed")
    q = torch.randn(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return s, q if request.param == "charged" else q - q.mean()


def ours(s: Structure, q: Tensor, engine: str = "separable") -> tuple[Tensor, Tensor, Tensor]:
    """Energy, and its derivatives by positions and cell (at fixed positions), of Gaussians in their background."""
    kernel = GaussianCoulomb(SIGMA)
    positions, cell = s.positions.clone().requires_grad_(), s.cell[0].clone().requires_grad_()
    rsum = ReciprocalSum(kernel, K_CUTOFF, engine=engine, tolerance=1e-6, envelope=1.0)
    no_pairs = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    volume, index = torch.linalg.det(cell).abs()[None], torch.zeros_like(s.numbers)
    energy = rsum(positions, q, cell) + CoulombComplement(kernel, 1.0)(q, volume, index, *no_pairs)
    return energy.detach()[0], *torch.autograd.grad(energy, [positions, cell])


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).abs().max()) < tolerance * float(expected.abs().max())


@pytest.mark.parametrize("system", CASES, indirect=True)
@pytest.mark.parametrize("engine", ["separable", "nufft"])
def test_energy_forces_and_cell_gradient_equal_torch_pme(system: tuple[Structure, Tensor], engine: str) -> None:
    torchpme = pytest.importorskip("torchpme")
    s, q = system
    positions, cell = s.positions.clone().requires_grad_(), s.cell[0].clone().requires_grad_()
    potential = torchpme.CoulombPotential(smearing=SIGMA, prefactor=COULOMB_CONSTANT)
    # it keeps about half of the wave vectors that it is asked for
    calculator = torchpme.EwaldCalculator(potential, lr_wavelength=math.pi / K_CUTOFF).to(torch.float64)
    energy = (q * calculator._compute_kspace(q, cell, positions)).sum()
    theirs = (energy.detach(), *torch.autograd.grad(energy, [positions, cell]))
    tolerance = TOLERANCE if engine == "separable" else NUFFT_TOLERANCE
    for found, expected in zip(ours(s, q, engine), theirs, strict=True):
        assert close(found, expected, tolerance)


@pytest.mark.parametrize("system", CASES, indirect=True)
def test_energy_and_forces_equal_nvalchemi(system: tuple[Structure, Tensor]) -> None:
    electrostatics = pytest.importorskip("nvalchemiops.torch.interactions.electrostatics")
    s, q = system
    alpha = torch.tensor([1.0 / (math.sqrt(2.0) * SIGMA)], dtype=torch.float64)
    kvectors = k_lattice(s.cell[0], K_CUTOFF).indices.to(torch.float64) @ reciprocal_cell(s.cell[0])
    energy, forces = electrostatics.ewald_reciprocal_space(
        s.positions, q[:, 0], s.cell, kvectors, alpha, compute_forces=True, energy_reduction="system"
    )
    found = ours(s, q)
    assert close(found[0], COULOMB_CONSTANT * energy.reshape(()), TOLERANCE)
    assert close(-found[1], COULOMB_CONSTANT * forces, TOLERANCE)


@pytest.mark.parametrize("system", ["neutral"], indirect=True)
def test_hessian_equals_matscipy(system: tuple[Structure, Tensor]) -> None:
    ewald = pytest.importorskip("matscipy.calculators.ewald")
    s, q = system
    cutoff, k_cutoff = 4.0, 15.0
    atoms = Atoms(s.numbers.numpy(), s.positions.numpy(), cell=s.cell[0].numpy(), pbc=True)
    atoms.set_array("charge", q[:, 0].numpy())
    boxes = np.ceil(9.5 * atoms.cell.lengths() / (2 * np.pi)).astype(int)
    atoms.calc = ewald.Ewald()
    atoms.calc.set(cutoff=7.5, verbose=False, kspace={"alpha": 0.75, "nbk_c": boxes, "cutoff": 9.5})
    with np.errstate(invalid="ignore"):  # it estimates an alpha, which is not used, from the diagonal of the cell
        atoms.get_potential_energy()  # sets alpha
        expected = torch.from_numpy(np.asarray(atoms.calc.get_hessian(atoms, format="sparse")))
    kernel = GaussianCoulomb(splitting(cutoff, k_cutoff)[0])
    reciprocal, complement = ReciprocalSum(kernel, k_cutoff), CoulombComplement(kernel, cutoff)
    volume, index = torch.linalg.det(s.cell).abs(), torch.zeros_like(s.numbers)

    def energy(positions: Tensor) -> Tensor:
        moved = s.clone()
        moved.positions = positions.view(-1, 3)
        distances = torch.linalg.vector_norm(edge_vectors(moved), dim=1)
        in_r = complement(q, volume, index, s.edge_index, distances)
        return (reciprocal(moved.positions, q, s.cell) + in_r).sum()

    found = torch.autograd.functional.hessian(energy, s.positions.reshape(-1))
    assert close(found, expected, HESSIAN_TOLERANCE)
