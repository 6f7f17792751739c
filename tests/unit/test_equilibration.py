"""Equilibrated charges: closed forms, brute force, total charge, distance, start values, failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from scipy.special import erf, erfc

from lrpot.charges import EquilibratedCharges, interaction
from lrpot.charges import minimum as solver
from lrpot.data.neighbours import add_edges
from lrpot.errors import ConvergenceError
from lrpot.kspace import k_lattice, reciprocal_cell
from lrpot.potential import Potential, geometry_of
from lrpot.smooth import taper
from lrpot.structure import Structure, collate, edge_vectors, make_structure
from lrpot.training.baseline import set_start
from lrpot.units import COULOMB_CONSTANT
from tests.unit.test_potential import SLABS, with_pbc

# The tapers leave out (1e-7)^0.81 = 2e-6 of the Coulomb energy.
COULOMB_TOLERANCE = 1e-5  # e
TOLERANCE = 1e-8  # e: iterations leave 1e-9 of the potentials
DIRECT_TOLERANCE = 1e-10  # e
TOTAL_TOLERANCE = 1e-12  # e
MakePotential = Callable[..., Potential]
RandomCrystal = Callable[..., Structure]


@pytest.fixture
def model(make_potential: MakePotential) -> Potential:
    """Coulomb without anything learned in the kernel."""
    model = make_potential("coulomb", charges="equilibration")
    for parameter in model.long.reciprocal.kernel.fcn.parameters():
        parameter.data.zero_()
    return model.requires_grad_(False)


def molecule(numbers: Sequence[int], positions: object, charge: float = 0.0) -> Structure:
    return add_edges(make_structure(numbers, positions, torch.zeros(3, 3), [False] * 3, total_charge=charge), 4.0)


def electronegativity(model: Potential, s: Structure) -> np.ndarray:
    features = model.short.features(s, edge_vectors(s))
    return model.long.charges.of_atoms(s, features)[:, 0].detach().numpy()


def parameters(model: Potential, s: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Hardness, eV/e^2, and width, A, of each atom."""
    row = model.long.charges.row[s.numbers]
    return model.long.charges.hardness[row].detach().numpy(), model.long.charges.width[row].detach().numpy()


def equilibrium(matrix: np.ndarray, chi: np.ndarray, total: float) -> tuple[np.ndarray, float]:
    """Charges and energy from the linear equations with a Lagrange multiplier."""
    n = len(chi)
    whole = np.ones((n + 1, n + 1))
    whole[:n, :n], whole[n, n] = matrix, 0.0
    q = np.linalg.solve(whole, np.append(-chi, total))[:n]
    return q, float(chi @ q + 0.5 * q @ matrix @ q)


# --- closed forms


@pytest.mark.parametrize("distance", [2.3, 3.4, 60.0])
@pytest.mark.parametrize("total", [0.0, -1.0])
def test_two_gaussian_charges_in_vacuum(distance: float, total: float, model: Potential) -> None:
    s = molecule([11, 17], [[0.1, 0.2, 0.3], [0.1, 0.2 + distance, 0.3]], total)
    (chi_a, chi_b), (hardness, width) = electronegativity(model, s), parameters(model, s)
    own = hardness + COULOMB_CONSTANT / math.sqrt(math.pi) / width
    between = COULOMB_CONSTANT * erf(distance / math.sqrt(2.0 * (width**2).sum())) / distance
    # dE/dq_a = dE/dq_b with q_b = Q - q_a
    q_a = (chi_b - chi_a + total * (own[1] - between)) / (own.sum() - 2.0 * between)
    output = model(s)
    assert abs(q_a) > 0.05
    assert output["charges"][:, 0].tolist() == pytest.approx([q_a, total - q_a], abs=COULOMB_TOLERANCE)
    q = np.array([q_a, total - q_a])
    energy = chi_a * q[0] + chi_b * q[1] + 0.5 * own @ q**2 + between * q[0] * q[1]
    assert output["energy_long"].item() == pytest.approx(energy, abs=COULOMB_TOLERANCE * 10)


def test_one_atom_has_the_total_charge(model: Potential) -> None:
    s = molecule([11], [[0.1, 0.2, 0.3]], 0.7)
    (chi,), (hardness, width) = electronegativity(model, s), parameters(model, s)
    output = model(s)
    assert output["charges"].tolist() == [[0.7]]
    own = hardness[0] + COULOMB_CONSTANT / math.sqrt(math.pi) / width[0]
    assert output["energy_long"].item() == pytest.approx(0.7 * chi + 0.5 * own * 0.49, abs=COULOMB_TOLERANCE)


def test_charge_flows_between_atoms_that_differ_in_nothing_but_their_place(model: Potential) -> None:
    """Three equal atoms with one electron too many in a row: the ends carry more of it."""
    model.long.charges.network.last.weight.zero_()
    s = molecule([17, 17, 17], [[0.0, 0, 0], [2.5, 0, 0], [5.0, 0, 0]], -1.0)
    q = model(s)["charges"][:, 0]
    assert q[0].item() == pytest.approx(q[2].item(), abs=TOLERANCE)
    assert q[0] < q[1] - 0.01


# --- brute force


def ewald_matrix(cell: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Coulomb energies of pairs of unit point charges and their images in a uniform background, twice those of one."""
    volume = abs(np.linalg.det(cell))
    alpha = 2.5 / volume ** (1 / 3)
    n, own = len(positions), -2.0 * alpha / math.sqrt(math.pi)
    matrix = np.full((n, n), -math.pi / (volume * alpha**2))
    shifts = np.array(list(product(range(-6, 7), repeat=3)))
    images, waves = shifts @ cell, shifts[np.any(shifts != 0, axis=1)] @ (2.0 * math.pi * np.linalg.inv(cell).T)
    squares = (waves**2).sum(axis=1)
    for i, j in product(range(n), repeat=2):
        apart = positions[j] - positions[i]
        r = np.linalg.norm(apart + images, axis=1)
        r = r[r > 1e-9]
        matrix[i, j] += (erfc(alpha * r) / r).sum() + own * (i == j)
        weights = np.exp(-squares / (4.0 * alpha**2)) / squares
        matrix[i, j] += 4.0 * math.pi / volume * (weights * np.cos(waves @ apart)).sum()
    return COULOMB_CONSTANT * matrix


def overlap_matrix(cell: np.ndarray, positions: np.ndarray, width: np.ndarray, cutoff: float) -> np.ndarray:
    n = len(positions)
    matrix = np.diag(COULOMB_CONSTANT / math.sqrt(math.pi) / width)
    images = np.array(list(product(range(-4, 5), repeat=3))) @ cell
    for i, j in product(range(n), repeat=2):
        r = np.linalg.norm(positions[j] - positions[i] + images, axis=1)
        r = r[(r > 1e-9) & (r < cutoff)]
        bare = -erfc(r / math.sqrt(2.0 * (width[i] ** 2 + width[j] ** 2))) / r
        matrix[i, j] += COULOMB_CONSTANT * (bare * taper(torch.from_numpy(r), cutoff, 0.9).numpy()).sum()
    return matrix


@pytest.mark.parametrize(("n", "left_handed", "total"), [(2, False, 0.0), (5, True, 0.6), (4, False, -1.0)])
def test_crystal_against_ewald_sums_pair_by_pair(
    n: int, left_handed: bool, total: float, model: Potential, random_crystal: RandomCrystal
) -> None:
    s = random_crystal(n, n, left_handed=left_handed, unwrapped=True, total_charge=total)
    cell = s.cell[0].numpy()
    positions = (s.positions.numpy() @ np.linalg.inv(cell)) % 1.0 @ cell
    hardness, width = parameters(model, s)
    matrix = ewald_matrix(cell, positions) + overlap_matrix(cell, positions, width, 4.0) + np.diag(hardness)
    q, energy = equilibrium(matrix, electronegativity(model, s), total)
    output = model(s)
    assert np.ptp(q) > 0.1
    np.testing.assert_allclose(output["charges"][:, 0], q, rtol=0, atol=COULOMB_TOLERANCE)
    assert output["energy_long"].item() == pytest.approx(energy, abs=COULOMB_TOLERANCE * 100)


@pytest.mark.parametrize("kind", ["no-complement", "free"])
def test_learned_kernel_against_the_plain_sum(
    kind: str, make_potential: MakePotential, random_crystal: RandomCrystal
) -> None:
    model, s = make_potential(kind, charges="equilibration"), random_crystal(3, 5, total_charge=0.4)
    k = k_lattice(s.cell[0], model.long.reciprocal.k_cutoff).indices.double() @ reciprocal_cell(s.cell[0])
    phi = model.long.reciprocal.phi(torch.linalg.vector_norm(k, dim=1)).detach().numpy()
    assert phi.min() >= 0.0
    phases = s.positions.numpy()[:, None] - s.positions.numpy()
    matrix = 4.0 / torch.linalg.det(s.cell[0]).abs().item() * (np.cos(phases @ k.numpy().T) * phi).sum(axis=2)
    hardness, _ = parameters(model, s)
    q, energy = equilibrium(matrix + np.diag(hardness), electronegativity(model, s), 0.4)
    output = model(s)
    np.testing.assert_allclose(output["charges"][:, 0], q, rtol=0, atol=DIRECT_TOLERANCE)
    assert output["energy_long"].item() == pytest.approx(energy, rel=1e-11)


@pytest.mark.parametrize("kind", ["coulomb", "no-complement", "free"])
@pytest.mark.parametrize("pbc", [[True] * 3, *SLABS, [False] * 3], ids=str)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "iterations"])
def test_every_boundary_against_the_curvature_of_the_energy(
    kind: str,
    pbc: list[bool],
    direct: bool,
    make_potential: MakePotential,
    random_crystal: RandomCrystal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H is that of the energy which other charge models get for the same charges."""
    if not direct:
        monkeypatch.setattr(solver, "DIRECT", 0)
    model = make_potential(kind, charges="equilibration").requires_grad_(False)
    s = with_pbc(random_crystal(4, 5, left_handed=True, total_charge=-0.5), pbc)
    interaction = model.long.charges.quadratic(s, model.long.electrostatics, geometry_of(s, edge_vectors(s)))
    zero = torch.zeros(5, dtype=torch.float64)
    matrix = torch.autograd.functional.hessian(lambda q: interaction.energy(q, interaction.tensors).sum(), zero)
    columns = interaction.product()(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(columns, matrix, rtol=1e-11, atol=1e-11 * matrix.abs().max().item())
    q, energy = equilibrium(matrix.numpy(), electronegativity(model, s), -0.5)
    output = model(s)
    np.testing.assert_allclose(output["charges"][:, 0], q, rtol=0, atol=DIRECT_TOLERANCE if direct else TOLERANCE)
    assert output["energy_long"].item() == pytest.approx(energy, rel=1e-9)


# --- what they are for


def chain(far: int, total: float = 0.0) -> Structure:
    """Twelve atoms 2.8 A apart, of which the last may differ."""
    numbers = [11, 17] * 5 + [11, far]
    return molecule(numbers, [[2.8 * n, 0.0, 0.0] for n in range(12)], total)


@pytest.mark.parametrize("charges", ["environment", "equilibration"])
@pytest.mark.parametrize("other", [(8, 0.0), (17, 1.0)], ids=["element", "total charge"])
def test_the_far_side_changes_the_charge(charges: str, other: tuple[int, float], make_potential: MakePotential) -> None:
    """30.8 A from what differs, behind two interactions of 4 A: only charge that flows can know of it."""
    model = make_potential("coulomb", charges=charges, elements=(8, 11, 17))
    one, two = model(chain(17)), model(chain(*other))
    near = (one["charges"][0] - two["charges"][0]).abs().item()
    assert (near > 1e-3) == (charges == "equilibration")
    if charges == "environment":
        assert near < 1e-12


def test_supercell_with_and_without_a_vacancy(model: Potential, random_crystal: RandomCrystal) -> None:
    """One atom less and the same total charge: all others carry something else."""
    whole = random_crystal(5, 12)
    less = add_edges(
        make_structure(whole.numbers[:-1], whole.positions[:-1], whole.cell[0], [True] * 3, total_charge=0.0), 4.0
    )
    with_all, without = model(whole)["charges"][:-1], model(less)["charges"]
    assert float((with_all - without).abs().min()) > 1e-4


# --- total charge and batches


@pytest.mark.parametrize("neutrality", ["background", "shift"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "iterations"])
def test_different_total_charges_in_one_batch(
    neutrality: str,
    direct: bool,
    make_potential: MakePotential,
    random_crystal: RandomCrystal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not direct:
        monkeypatch.setattr(solver, "DIRECT", 0)
    model = make_potential("coulomb", charges="equilibration", neutrality=neutrality)
    structures = [
        random_crystal(0, 5, total_charge=1.0),
        with_pbc(random_crystal(1, 4, total_charge=-2.0), SLABS[1]),
        with_pbc(random_crystal(2, 5, total_charge=0.25), [False] * 3),
        random_crystal(3, 1, total_charge=-0.5),
        random_crystal(4, 5),
    ]
    batch = collate(structures)
    together = model(batch)
    sums = torch.zeros(5, dtype=torch.float64).index_add(0, batch.batch, together["charges"][:, 0])
    torch.testing.assert_close(sums, batch.total_charge, rtol=0, atol=TOTAL_TOLERANCE)
    alone = [model(s) for s in structures]
    for name in ("charges", "energy", "forces"):
        separate = torch.cat([output[name] for output in alone])
        torch.testing.assert_close(together[name], separate, rtol=0, atol=10 * TOLERANCE)


def test_iterations_agree_with_the_matrix(
    make_potential: MakePotential, random_crystal: RandomCrystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_potential("coulomb", charges="equilibration")
    batch = collate([random_crystal(0, 24, total_charge=1.0), random_crystal(1, 30), random_crystal(2, 7)])
    direct = model(batch)
    monkeypatch.setattr(solver, "DIRECT", 0)
    by_steps = model(batch)
    for name, value in direct.items():
        torch.testing.assert_close(by_steps[name], value, rtol=0, atol=10 * TOLERANCE)
    assert not torch.equal(by_steps["charges"], direct["charges"])


def test_rough_products_on_a_coarse_mesh_change_nothing(
    make_potential: MakePotential, random_crystal: RandomCrystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "DIRECT", 0)
    model = make_potential("coulomb", charges="equilibration").requires_grad_(False)
    model.long.reciprocal.engine = "nufft"
    batch = collate([random_crystal(0, 40, total_charge=1.0), random_crystal(1, 12)])
    exact = model(batch)
    monkeypatch.setattr(interaction, "ROUGH_FROM", 0)
    products = []
    potential_of = type(model.long.reciprocal).potential_of

    def counted(*given: object, tolerance: float | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
        found = potential_of(*given, tolerance=tolerance)
        return lambda charges: products.append(tolerance) or found(charges)

    monkeypatch.setattr(type(model.long.reciprocal), "potential_of", counted)
    rough = model(batch)
    for name, value in exact.items():
        torch.testing.assert_close(rough[name], value, rtol=0, atol=10 * TOLERANCE)
    assert products.count(None) <= 5 < products.count(interaction.ROUGH)


def test_single_precision_of_the_sums(make_potential: MakePotential, random_crystal: RandomCrystal) -> None:
    model, batch = (
        make_potential("coulomb", charges="equilibration"),
        collate([random_crystal(0, 40), random_crystal(1, 6)]),
    )
    double = model(batch)
    single = model.set_precision(torch.float32, long_range=torch.float32)(batch)
    assert 0 < float((single["charges"] - double["charges"]).abs().max()) < 1e-5
    assert 0 < float((single["forces"] - double["forces"]).abs().max()) < 1e-4 * float(double["forces"].abs().max())


# --- channels


def test_further_channels_are_charges_of_the_surroundings(
    make_potential: MakePotential, random_crystal: RandomCrystal
) -> None:
    one = make_potential("coulomb", charges="equilibration")
    three = make_potential("coulomb", charges="equilibration", channels=3)
    s = random_crystal(0, 5, total_charge=1.0)
    output = three(s)
    assert output["charges"].shape == (5, 3)
    assert output["charges"][:, 0].sum().item() == pytest.approx(1.0, abs=TOTAL_TOLERANCE)
    latent = output["charges"][:, 1:]
    assert float(latent.abs().max()) > 1e-3
    # the channels do not interact
    inputs = geometry_of(s, edge_vectors(s))
    first = torch.cat([output["charges"][:, :1], torch.zeros(5, 2, dtype=torch.float64)], dim=1)
    alone = three.long.electrostatics.energy(first, inputs).detach()
    both = three.long.electrostatics.energy(output["charges"], inputs).detach()
    rest = three.long.electrostatics.energy(latent, inputs).detach()
    torch.testing.assert_close(both, alone + rest, rtol=1e-12, atol=0)
    assert one(s)["charges"].shape == (5, 1)


# --- parameters and start


def test_widths_start_at_covalent_radii_and_everything_stays_positive() -> None:
    charges = EquilibratedCharges([8, 11, 17], features=4)
    assert charges.width.tolist() == pytest.approx(covalent_radii[[8, 11, 17]].tolist())
    assert charges.hardness.tolist() == pytest.approx([5.0] * 3)
    with torch.no_grad():
        charges.raw_hardness.fill_(-50.0)
        charges.log_width.fill_(-50.0)
    assert charges.hardness.detach().min().item() > 0.0
    assert charges.width.detach().min().item() > 0.0


def test_atoms_alone_carry_the_charges_they_start_from(model: Potential) -> None:
    charges = model.long.charges
    charges.network.last.weight.zero_()
    charges.set_values({11: 0.7, 17: -0.7})
    assert charges.by_element() == pytest.approx({11: 0.7, 17: -0.7})
    # two ions 60 A apart make each other a little larger
    s = molecule([11, 17], [[0.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    hardness, width = parameters(model, s)
    own = float((hardness + COULOMB_CONSTANT / math.sqrt(math.pi) / width).sum())
    expected = 0.7 * own / (own - 2.0 * COULOMB_CONSTANT / 60.0)
    assert model(s)["charges"][:, 0].tolist() == pytest.approx([expected, -expected], abs=COULOMB_TOLERANCE)


def test_a_fit_starts_with_its_charges_in_its_structures(model: Potential, random_crystal: RandomCrystal) -> None:
    model.long.charges.network.last.weight.zero_()
    structures = [random_crystal(seed, 12) for seed in range(4)]
    set_start(model, {11: 0.6, 17: -0.6}, structures)
    batch = collate(structures)
    q = model(batch)["charges"][:, 0]
    for z, expected in ((11, 0.6), (17, -0.6)):
        # potentials differ from site to site, so that the mean is what can be right
        assert q[batch.numbers == z].mean().item() == pytest.approx(expected, abs=0.1)
    # all sites alike: exactly
    salt = add_edges(
        make_structure([11, 17], [[0.0, 0, 0], [2.82, 2.82, 2.82]], 2.82 * (1.0 - torch.eye(3)), [True] * 3), 4.0
    )
    set_start(model, {11: 0.6, 17: -0.6}, [salt])
    assert model(salt)["charges"][:, 0].tolist() == pytest.approx([0.6, -0.6], abs=DIRECT_TOLERANCE)


# --- failures


def test_charges_without_an_equilibrium_are_an_error(model: Potential) -> None:
    """Point charges close together, and almost no hardness: e and -e gain more from each other than they cost."""
    model.long.charges.raw_hardness.fill_(-20.0)
    model.long.charges.log_width.fill_(math.log(3.0))
    s = molecule([11, 17], [[0.0, 0, 0], [3.95, 0, 0]])
    with pytest.raises(ConvergenceError, match="the charges of its 2 atoms have no equilibrium"):
        model(s)


def test_iterations_that_do_not_end_are_an_error(
    model: Potential, random_crystal: RandomCrystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "DIRECT", 0)
    monkeypatch.setattr(solver, "MAX_ITERATIONS", 3)
    with pytest.raises(ConvergenceError, match=r"after 3 iterations .* 30 atoms leave a residual of"):
        model(random_crystal(0, 30))
