"""Both halves of the Ewald sum against torch-pme, nvalchemi-toolkit-ops and matscipy: energies to second derivatives.

Each peer computes the whole sum with its own code, with the same splitting and cutoffs at which what is left out is
below 1e-12, in float64. Where it has a limit of its own, the tolerance of the test says so.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.kspace import (
    CoulombComplement,
    Dispersion,
    DispersionComplement,
    GaussianCoulomb,
    ReciprocalSum,
    k_lattice,
    reciprocal_cell,
)
from lrpot.structure import Structure, edge_vectors, make_structure
from lrpot.units import COULOMB_CONSTANT

TOLERANCE = 1e-10  # relative to the largest number, or to the sum of the parts that cancel
CUTOFF = 8.0  # A
K_CUTOFF = 10.5  # 1/A; where the tapers begin, exp(-0.81 * 8 * 10.5 / 2) = 2e-15 is left
ALPHA = math.sqrt(K_CUTOFF / (2.0 * CUTOFF))
SIGMA = 1.0 / (math.sqrt(2.0) * ALPHA)

# name, seed, atoms, options of random_crystal, net charge
CASES: dict[str, tuple[int, int, dict[str, bool], float]] = {
    "triclinic": (0, 6, {}, 0.0),
    "left-handed": (1, 8, {"left_handed": True}, 0.0),
    "unwrapped": (2, 8, {"unwrapped": True}, 0.0),
    "charged": (3, 7, {}, 1.3),
    "charged, left-handed": (4, 5, {"left_handed": True}, -2.0),
}
NEUTRAL = [name for name, case in CASES.items() if case[3] == 0.0]


def crystal(name: str, random_crystal) -> tuple[Structure, Tensor]:
    """A structure with edges, and charges (N,)."""
    seed, n, options, net = CASES[name]
    structure = random_crystal(seed, n, cutoff=CUTOFF, **options)
    generator = torch.Generator().manual_seed(seed)
    charges = torch.tensor([1.0, -1.0] * n)[:n].double() + 0.3 * torch.randn(n, generator=generator).double()
    return structure, charges - charges.mean() + net / n


class Moved:
    """A structure whose positions, cell and charges autograd follows."""

    def __init__(self, structure: Structure, charges: Tensor) -> None:
        self.structure = structure.clone()
        self.positions = structure.positions.clone().requires_grad_()
        self.cell = structure.cell[0].clone().requires_grad_()
        self.charges = charges.clone().requires_grad_()
        self.structure.positions, self.structure.cell = self.positions, self.cell[None]
        self.distances = torch.linalg.vector_norm(edge_vectors(self.structure), dim=1)

    def derivatives(self, energy: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(energy, [self.positions, self.cell, self.charges])
        return dict(zip(("positions", "cell", "charges"), found, strict=True)) | {"energy": energy.detach()}


def ours(structure: Structure, charges: Tensor, kernel: GaussianCoulomb | Dispersion) -> dict[str, Tensor]:
    moved = Moved(structure, charges)
    index = torch.zeros_like(structure.numbers)
    k_cutoff = K_CUTOFF if isinstance(kernel, GaussianCoulomb) else 13.0 * kernel.beta
    complement = (CoulombComplement if isinstance(kernel, GaussianCoulomb) else DispersionComplement)(kernel, CUTOFF)
    q = moved.charges[:, None]
    in_k = ReciprocalSum(kernel, k_cutoff, engine="separable")(moved.positions, q, moved.cell)
    volume = torch.linalg.det(moved.cell).abs()[None]
    in_r = complement(q, volume, index, structure.edge_index, moved.distances)
    return moved.derivatives((in_k + in_r)[0]) | {"scale": in_k[0].detach().abs() + in_r[0].detach().abs()}


def assert_equal(found: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert found["energy"].item() == pytest.approx(theirs["energy"].item(), abs=tolerance * found["scale"].item())
    for name in ("positions", "cell", "charges"):
        if name in theirs:
            largest = float(theirs[name].abs().max())
            assert largest > 1e-3
            assert float((found[name] - theirs[name]).abs().max()) < tolerance * largest, name


def peer(name: str) -> Any:
    """The module, or the test is skipped; without the noise of its import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'lrpot[peers]'")


# --- torch-pme


def torchpme(structure: Structure, charges: Tensor, potential: Any) -> dict[str, Tensor]:
    """Its smearing is our sigma; its wave vectors fill the box around a sphere of radius pi / lr_wavelength."""
    package = peer("torchpme")
    calculator = package.EwaldCalculator(potential, math.pi / K_CUTOFF, full_neighbor_list=True).double()
    moved = Moved(structure, charges)
    q = moved.charges[:, None]
    # an edge is centre and neighbour; the potential of an atom has its factor 1/2 already
    edges = structure.edge_index.flip(0).T
    return moved.derivatives((q * calculator(q, moved.cell, moved.positions, edges, moved.distances)).sum())


@pytest.mark.parametrize("case", CASES)
def test_energy_forces_cell_and_charge_gradients_equal_torch_pme(case: str, random_crystal) -> None:
    structure, charges = crystal(case, random_crystal)
    potential = peer("torchpme").CoulombPotential(smearing=SIGMA, prefactor=COULOMB_CONSTANT)
    assert_equal(ours(structure, charges, GaussianCoulomb(SIGMA)), torchpme(structure, charges, potential))


@pytest.mark.parametrize("case", ["triclinic", "charged", "left-handed"])
def test_dispersion_equals_torch_pme(case: str, random_crystal) -> None:
    structure, charges = crystal(case, random_crystal)
    charges = charges.abs() + 0.5
    kernel = Dispersion(0.8)
    smearing = 1.0 / (math.sqrt(2.0) * kernel.beta)
    potential = peer("torchpme").InversePowerLawPotential(exponent=6, smearing=smearing, prefactor=-1.0)
    # its incomplete gamma function has ten digits
    assert_equal(ours(structure, charges, kernel), torchpme(structure, charges, potential), 1e-8)


# --- nvalchemi-toolkit-ops


def half_sphere(cell: Tensor) -> Tensor:
    return k_lattice(cell, K_CUTOFF).indices.double() @ reciprocal_cell(cell)


def nvalchemi(structure: Structure, charges: Tensor, method: str, **settings: Any) -> dict[str, Tensor]:
    """Energies in e^2/A. Edges as (centre, neighbour), sorted by centre, with the first edge of each atom."""
    package = peer("nvalchemiops.torch.interactions.electrostatics")
    moved = Moved(structure, charges)
    neighbour, centre = structure.edge_index
    counts = torch.bincount(centre, minlength=len(charges))
    options = {
        "alpha": ALPHA,
        "neighbor_list": torch.stack([centre, neighbour]).int(),
        "neighbor_ptr": torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(),
        "neighbor_shifts": structure.edge_shift.int(),
        "energy_reduction": "system",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        energy = getattr(package, method)(moved.positions, moved.charges, moved.cell[None], **options, **settings)
        return moved.derivatives(COULOMB_CONSTANT * energy.sum())


@pytest.mark.parametrize("case", CASES)
def test_energy_forces_and_charge_gradients_equal_nvalchemi(case: str, random_crystal) -> None:
    structure, charges = crystal(case, random_crystal)
    theirs = nvalchemi(structure, charges, "ewald_summation", k_vectors=half_sphere(structure.cell[0]))
    del theirs["cell"]  # wave vectors that are given do not follow the cell
    assert_equal(ours(structure, charges, GaussianCoulomb(SIGMA)), theirs)


@pytest.mark.parametrize("case", ["triclinic", "charged"])
def test_cell_gradient_equals_nvalchemi(case: str, random_crystal) -> None:
    structure, charges = crystal(case, random_crystal)
    indices = k_lattice(structure.cell[0], K_CUTOFF).indices
    theirs = nvalchemi(structure, charges, "ewald_summation", miller_indices=indices)
    assert_equal(ours(structure, charges, GaussianCoulomb(SIGMA)), theirs)


@pytest.mark.parametrize("case", ["triclinic", "left-handed", "charged"])
def test_particle_mesh_ewald_of_nvalchemi(case: str, random_crystal) -> None:
    """Splines of order 6 on a mesh of 0.1 A: what they interpolate is right to six digits."""
    structure, charges = crystal(case, random_crystal)
    theirs = nvalchemi(structure, charges, "particle_mesh_ewald", mesh_spacing=0.1, spline_order=6)
    assert_equal(ours(structure, charges, GaussianCoulomb(SIGMA)), theirs, 1e-6)


@pytest.mark.parametrize("case", ["triclinic", "charged"])
def test_slab_equals_nvalchemi(case: str, random_crystal) -> None:
    """Its slab is a box with vacuum that the caller makes, and the correction of Ballenegger et al."""
    structure, charges = crystal(case, random_crystal)
    cell = structure.cell[0].clone()
    normal = torch.linalg.cross(cell[0], cell[1])
    normal = normal / torch.linalg.vector_norm(normal)
    height = structure.positions @ normal
    cell[2] = (float(height.max() - height.min()) + 40.0) * normal
    slab = add_edges(make_structure(structure.numbers, structure.positions, cell, [True, True, False]), CUTOFF)
    theirs = nvalchemi(
        slab,
        charges,
        "ewald_summation",
        k_vectors=half_sphere(cell),
        pbc=torch.tensor([[True, True, False]]),
        slab_correction=True,
    )
    kernel = GaussianCoulomb(SIGMA)
    moved, index = Moved(slab, charges), torch.zeros_like(slab.numbers)
    q, pbc = moved.charges[:, None], slab.pbc[0]
    # the vector that does not repeat is not used
    in_k = ReciprocalSum(kernel, K_CUTOFF)(
        moved.positions, q, torch.cat([moved.cell[:2], 0.0 * moved.cell[2:]]), pbc=pbc
    )
    volume = torch.full((1,), math.inf, dtype=torch.float64)
    in_r = CoulombComplement(kernel, CUTOFF)(q, volume, index, slab.edge_index, moved.distances)
    found = moved.derivatives((in_k + in_r)[0]) | {"scale": in_k[0].detach().abs() + in_r[0].detach().abs()}
    del theirs["cell"]
    # exp(-G gap) of a neighbouring slab is left in their box and in ours
    assert_equal(found, theirs, 1e-8)


# --- matscipy


@pytest.fixture
def matscipy_calculator(monkeypatch):
    """matscipy's Ewald sum with our constant, alpha and cutoffs; neutral cells only."""
    calculator = importlib.import_module("matscipy.calculators.ewald.calculator")
    monkeypatch.setattr(calculator, "conversion_prefactor", COULOMB_CONSTANT)

    def make(structure: Structure, charges: Tensor) -> tuple[Atoms, Any]:
        atoms = Atoms(structure.numbers.numpy(), structure.positions.numpy(), cell=structure.cell[0].numpy(), pbc=True)
        atoms.set_array("charge", charges.numpy())
        boxes = np.ceil(K_CUTOFF * atoms.cell.lengths() / (2 * np.pi)).astype(int)
        ewald = calculator.Ewald()
        ewald.set(cutoff=CUTOFF, verbose=False, kspace={"alpha": ALPHA, "nbk_c": boxes, "cutoff": K_CUTOFF})
        atoms.calc = ewald
        with np.errstate(invalid="ignore"):  # it estimates an alpha that is not used
            atoms.get_potential_energy()
        return atoms, ewald

    return make


def energy_of(structure: Structure, charges: Tensor, positions: Tensor, strain: Tensor) -> Tensor:
    """(): both halves, at positions and a deformation 1 + strain of them and of the cell."""
    deformed, deformation = structure.clone(), torch.eye(3, dtype=torch.float64) + strain
    deformed.positions, deformed.cell = positions @ deformation, structure.cell @ deformation
    kernel, q, index = GaussianCoulomb(SIGMA), charges[:, None], torch.zeros_like(structure.numbers)
    in_k = ReciprocalSum(kernel, K_CUTOFF, engine="separable")(deformed.positions, q, deformed.cell)
    distances = torch.linalg.vector_norm(edge_vectors(deformed), dim=1)
    volume = torch.linalg.det(deformed.cell).abs()
    return (in_k + CoulombComplement(kernel, CUTOFF)(q, volume, index, structure.edge_index, distances))[0]


@pytest.mark.parametrize("case", NEUTRAL)
def test_second_derivatives_equal_matscipy(case: str, random_crystal, matscipy_calculator) -> None:
    """Hessian: by positions twice, as autograd gives it. Non-affine forces: by positions and strain."""
    structure, charges = crystal(case, random_crystal)
    atoms, ewald = matscipy_calculator(structure, charges)
    x = structure.positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    energy = energy_of(structure, charges, x, strain)
    (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
    np.testing.assert_allclose(
        -gradient.detach(), atoms.get_forces(), atol=TOLERANCE * np.abs(atoms.get_forces()).max()
    )
    rows, mixed = [], []
    for component in gradient.reshape(-1):
        row, by_strain = torch.autograd.grad(component, [x, strain], retain_graph=True)
        rows.append(row.reshape(-1))
        mixed.append(by_strain)
    hessian = torch.stack(rows)
    theirs = np.asarray(ewald.get_hessian(atoms))
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(hessian, theirs, rtol=0.0, atol=TOLERANCE * scale)
    assert float((hessian - hessian.T).abs().max()) < 1e-12 * scale
    # a uniform translation costs nothing
    assert float(hessian.reshape(len(x), 3, -1).sum(dim=0).abs().max()) < 1e-11 * scale
    # theirs are forces in the deformed crystal, ours belong to places before the deformation
    ours_mixed = torch.stack(mixed).reshape(-1, 3, 3, 3)
    turned = torch.einsum("na,cb->ncab", gradient.detach(), torch.eye(3, dtype=torch.float64))
    theirs = ewald.get_nonaffine_forces(atoms)
    np.testing.assert_allclose(turned - ours_mixed, theirs, rtol=0.0, atol=TOLERANCE * np.abs(theirs).max())
