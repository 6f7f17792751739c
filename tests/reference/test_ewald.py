"""The Coulomb energy of point charges against pymatgen, matscipy and the constants of the literature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress
from matscipy.calculators.ewald import Ewald
from matscipy.calculators.ewald import calculator as matscipy_ewald
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.core import Lattice, Species
from pymatgen.core import Structure as Crystal
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.kspace import CoulombComplement, GaussianCoulomb, ReciprocalSum, splitting
from lrpot.structure import Structure, edge_vectors, make_structure
from lrpot.units import COULOMB_CONSTANT

ENERGY_TOLERANCE = 1e-10  # relative to the sum of the magnitudes of its parts
FORCE_TOLERANCE = 1e-9  # relative to the largest force
STRESS_TOLERANCE = 1e-9  # relative to the largest component
MADELUNG_TOLERANCE = 1e-10  # relative, where the literature has the digits
# what the tapers of both sums leave out: exp(-0.81 * 0.5 * CUTOFF * K_CUTOFF) = 3e-11
CUTOFF = 6.0  # A
K_CUTOFF = 10.0  # 1/A


@pytest.fixture(autouse=True)
def _one_coulomb_constant(monkeypatch) -> None:
    """pymatgen's follows the version of scipy, matscipy's has eight digits."""
    monkeypatch.setattr(EwaldSummation, "CONV_FACT", COULOMB_CONSTANT)
    monkeypatch.setattr(matscipy_ewald, "conversion_prefactor", COULOMB_CONSTANT)


def test_the_coulomb_constant_is_that_of_codata_2022() -> None:
    charge, permittivity = 1.602176634e-19, 8.8541878188e-12  # C, F/m
    assert pytest.approx(1e10 * charge / (4 * math.pi * permittivity), rel=1e-14) == COULOMB_CONSTANT


def coulomb(
    structure: Structure,
    charges: Tensor,
    *,
    cutoff: float = CUTOFF,
    k_cutoff: float = K_CUTOFF,
    derivatives: bool = True,
) -> dict[str, Tensor]:
    """Energies (total, reciprocal, complement), forces and stress of fixed charges; the structure is not changed."""
    kernel = GaussianCoulomb(splitting(cutoff, k_cutoff)[0])
    reciprocal = ReciprocalSum(kernel, k_cutoff)
    complement = CoulombComplement(kernel, cutoff)
    s = add_edges(structure.clone(), cutoff)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    deformation = torch.eye(3, dtype=torch.float64) + strain
    s.positions = s.positions.requires_grad_()
    index = torch.zeros_like(s.numbers)
    moved = s.clone()
    moved.positions, moved.cell = s.positions @ deformation, s.cell @ deformation
    q = charges[:, None]
    in_k = reciprocal(moved.positions, q, moved.cell, index)[0]
    distances = torch.linalg.vector_norm(edge_vectors(moved), dim=1)
    in_r = complement(q, torch.linalg.det(moved.cell).abs(), index, moved.edge_index, distances)[0]
    result = {"energy": in_k + in_r, "reciprocal": in_k, "complement": in_r}
    if derivatives:
        gradients = torch.autograd.grad(in_k + in_r, [s.positions, strain])
        result |= {"forces": -gradients[0], "stress": gradients[1] / torch.linalg.det(s.cell[0]).abs()}
    result = {name: value.detach() for name, value in result.items()}
    result["scale"] = in_k.detach().abs() + in_r.detach().abs()
    return result


def pymatgen_ewald(structure: Structure, charges: Tensor, eta: float | None = None) -> EwaldSummation:
    # as oxidation states: older releases do not add up charges that are properties of sites
    species = [
        Species(chemical_symbols[z], charge)
        for z, charge in zip(structure.numbers.tolist(), charges.tolist(), strict=True)
    ]
    crystal = Crystal(
        Lattice(structure.cell[0].numpy()), species, structure.positions.numpy(), coords_are_cartesian=True
    )
    return EwaldSummation(crystal, eta=eta, acc_factor=14.0, compute_forces=True)


def some_charges(structure: Structure, *, neutral: bool, seed: int = 0) -> Tensor:
    q = torch.tensor([1.0 if z == 11 else -1.0 for z in structure.numbers.tolist()], dtype=torch.float64)
    q = q + 0.3 * torch.randn(len(q), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return q - q.mean() if neutral else q


def crystals(random_crystal) -> dict[str, tuple[Structure, Tensor]]:
    found = {}
    for name, seed, n, options in [
        ("triclinic", 0, 6, {}),
        ("left-handed", 1, 6, {"left_handed": True}),
        ("unwrapped", 2, 8, {"unwrapped": True}),
    ]:
        s = random_crystal(seed, n, **options)
        found[name] = s, some_charges(s, neutral=True, seed=seed)
    s = random_crystal(3, 7, left_handed=True)
    found["charged"] = s, some_charges(s, neutral=False)
    s = random_crystal(4, 1)
    found["one charge"] = s, torch.ones(1, dtype=torch.float64)
    # rock salt without one of its ions, rattled and strained
    atoms = bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2)
    del atoms[5]
    atoms.rattle(0.1, seed=1)
    strain = np.array([[0.01, 0.03, 0], [0, -0.02, 0.01], [0.02, 0, 0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    s = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    found["vacancy"] = s, torch.tensor([1.0 if z == 11 else -1.0 for z in atoms.numbers], dtype=torch.float64)
    return found


CASES = ["triclinic", "left-handed", "unwrapped", "charged", "one charge", "vacancy"]


def far(ours: Tensor, theirs: np.ndarray) -> float:
    """The largest difference relative to the largest number."""
    other = torch.as_tensor(np.asarray(theirs))
    return float((ours - other).abs().max() / other.abs().max())


# --- pymatgen


@pytest.mark.parametrize("case", CASES)
def test_energy_and_forces_equal_pymatgen(case: str, random_crystal) -> None:
    s, q = crystals(random_crystal)[case]
    assert (abs(float(q.sum())) > 0.1) == (case in ("charged", "one charge", "vacancy"))
    ours, theirs = coulomb(s, q), pymatgen_ewald(s, q)
    assert float(ours["energy"]) == pytest.approx(theirs.total_energy, abs=ENERGY_TOLERANCE * float(ours["scale"]))
    if case == "one charge":
        assert float(ours["forces"].abs().max()) < 1e-10
    else:
        assert far(ours["forces"], theirs.forces) < FORCE_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_reciprocal_part_equals_pymatgens_with_the_same_eta(case: str, random_crystal) -> None:
    s, q = crystals(random_crystal)[case]
    alpha = 0.75
    reciprocal = ReciprocalSum(GaussianCoulomb(1.0 / (math.sqrt(2.0) * alpha)), 12.0)
    ours = float(reciprocal(s.positions, q[:, None], s.cell))
    theirs = pymatgen_ewald(s, q, eta=alpha**2).reciprocal_space_energy
    assert ours == pytest.approx(theirs, rel=ENERGY_TOLERANCE)


# --- matscipy


@pytest.mark.parametrize("case", ["triclinic", "left-handed", "unwrapped"])
def test_energy_forces_and_stress_equal_matscipy(case: str, random_crystal) -> None:
    # it computes neutral cells only
    s, q = crystals(random_crystal)[case]
    alpha, k_cutoff = 0.75, 9.5
    atoms = Atoms(s.numbers.numpy(), s.positions.numpy(), cell=s.cell[0].numpy(), pbc=True)
    atoms.set_array("charge", q.numpy())
    boxes = np.ceil(k_cutoff * atoms.cell.lengths() / (2 * np.pi)).astype(int)
    atoms.calc = Ewald()
    atoms.calc.set(cutoff=7.5, verbose=False, kspace={"alpha": alpha, "nbk_c": boxes, "cutoff": k_cutoff})
    with np.errstate(invalid="ignore"):  # it estimates an alpha, which is not used, from the diagonal of the cell
        energy = atoms.get_potential_energy()
    ours = coulomb(s, q)
    assert float(ours["energy"]) == pytest.approx(energy, abs=ENERGY_TOLERANCE * float(ours["scale"]))
    assert far(ours["forces"], atoms.get_forces()) < FORCE_TOLERANCE
    theirs = voigt_6_to_full_3x3_stress(atoms.get_stress())
    assert far(ours["stress"], theirs) < STRESS_TOLERANCE


# --- independence of the splitting


@pytest.mark.parametrize("case", CASES)
def test_result_does_not_depend_on_the_splitting(case: str, random_crystal) -> None:
    s, q = crystals(random_crystal)[case]
    results = [coulomb(s, q, cutoff=c, k_cutoff=k) for c, k in ((5.0, 12.0), (6.0, 10.0), (8.0, 7.5))]
    parts = [float(r["reciprocal"]) for r in results]
    assert max(parts) - min(parts) > 1e-3 * abs(max(parts))  # the parts do depend on it
    scale = max(float(r["scale"]) for r in results)
    for other in results[1:]:
        assert float(results[0]["energy"]) == pytest.approx(float(other["energy"]), abs=ENERGY_TOLERANCE * scale)
        assert float((results[0]["stress"] - other["stress"]).abs().max()) < STRESS_TOLERANCE
        assert float((results[0]["forces"] - other["forces"]).abs().max()) < FORCE_TOLERANCE


def test_error_left_out_is_of_the_announced_size(random_crystal) -> None:
    s, q = crystals(random_crystal)["vacancy"]
    exact = float(coulomb(s, q)["energy"])
    for cutoff, k_cutoff in ((4.0, 5.0), (4.0, 7.0)):
        rough = coulomb(s, q, cutoff=cutoff, k_cutoff=k_cutoff, derivatives=False)
        left_out = splitting(cutoff, k_cutoff)[1]
        # the tapers begin at 0.9 of both cutoffs
        assert abs(float(rough["energy"]) - exact) < left_out**0.81 * float(rough["scale"])


# --- the literature


def wurtzite() -> Atoms:
    """Ideal: c/a = sqrt(8/3), u = 3/8."""
    a, c = 3.2, 3.2 * math.sqrt(8 / 3)
    return bulk("ZnS", "wurtzite", a=a, c=c, u=3 / 8)


def cuprite() -> Atoms:
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.75, 0.75, 0.25), (0.75, 0.25, 0.75), (0.25, 0.75, 0.75)]
    return Atoms("O2Cu4", scaled_positions=sites, cell=4.27 * np.eye(3), pbc=True)


def cubic(name: str, structure: str, a: float) -> Callable[[], Atoms]:
    return lambda: bulk(name, structure, a)


# crystal, charges, nearest distance, formula units per cell, constant: E = -constant k_e / distance per formula unit
CONSTANTS = {
    "NaCl": (cubic("NaCl", "rocksalt", 5.64), {"Na": 1, "Cl": -1}, 5.64 / 2, 1, 1.7475645946331822),
    "CsCl": (cubic("CsCl", "cesiumchloride", 4.12), {"Cs": 1, "Cl": -1}, 4.12 * 3**0.5 / 2, 1, 1.7626747730709884),
    "zincblende": (cubic("ZnS", "zincblende", 5.41), {"Zn": 1, "S": -1}, 5.41 * 3**0.5 / 4, 1, 1.6380550533887890),
    "wurtzite": (wurtzite, {"Zn": 1, "S": -1}, 3.2 * (3 / 8) ** 0.5, 2, 1.6413216273),
    "fluorite": (cubic("CaF2", "fluorite", 5.46), {"Ca": 2, "F": -1}, 5.46 * 3**0.5 / 4, 1, 5.0387848798),
    "Cu2O": (cuprite, {"Cu": 1, "O": -2}, 4.27 * 3**0.5 / 4, 2, 4.442475),
}
DIGITS = {"wurtzite": 1e-10, "Cu2O": 3e-7}  # of the printed constants, relative; the others have more


@pytest.mark.parametrize("name", CONSTANTS)
def test_madelung_constants(name: str) -> None:
    make, charge_of, distance, units, constant = CONSTANTS[name]
    atoms = make()
    q = torch.tensor([float(charge_of[symbol]) for symbol in atoms.symbols], dtype=torch.float64)
    assert float(q.sum()) == 0.0
    s = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    result = coulomb(s, q)
    found = -float(result["energy"]) / units * distance / COULOMB_CONSTANT
    assert found == pytest.approx(constant, rel=DIGITS.get(name, MADELUNG_TOLERANCE))
    # E goes as 1 / length, so its derivative by the logarithm of all lengths is -E
    trace = float(result["stress"].trace() * torch.linalg.det(s.cell[0]).abs())
    assert trace == pytest.approx(-float(result["energy"]), rel=MADELUNG_TOLERANCE)
    if name in DIGITS:
        assert float(result["energy"]) == pytest.approx(pymatgen_ewald(s, q).total_energy, rel=MADELUNG_TOLERANCE)


# One charge per lattice point in a uniform background, energy in units of k_e / (radius of a point's sphere).
WIGNER = {"sc": 0.8800594421, "bcc": 0.8959292557, "fcc": 0.8958736152}


@pytest.mark.parametrize("name", WIGNER)
def test_one_charge_in_its_background_is_a_wigner_crystal(name: str) -> None:
    atoms = bulk("Na", name, a=4.0)
    s = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    energy = float(coulomb(s, torch.ones(1, dtype=torch.float64))["energy"])
    radius = (3 * atoms.get_volume() / (4 * math.pi)) ** (1 / 3)
    assert -energy * radius / COULOMB_CONSTANT == pytest.approx(WIGNER[name], rel=MADELUNG_TOLERANCE)
