"""Born effective charges: closed forms, slopes of dipoles, sum rule, symmetry, images, batches, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from lrpot.born import born_charges
from lrpot.charges.polarisation import _flow_of_molecules, _Images, acoustic_sum, dipoles, flow_by_atoms
from lrpot.charges.polarisation import born_charges as born_tensors
from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError, StructureError
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, edge_vectors, make_structure
from tests.helpers_cli import rock_salt
from tests.unit.test_potential import POINTS, STEP, largest, with_pbc

SLOPE_TOLERANCE = 1e-8  # e, against differences of dipoles
EXACT = 1e-11  # e, of sums of some ten terms of 1 e A / A
PARAMETER_TOLERANCE = 1e-6  # relative, of a loss gradient against differences
SLAB = [True, True, False]
# one step of messages: a charge depends on nothing beyond the cutoff
NEAR = {"features": 8, "interactions": 1, "radial_basis": 6, "cutoff": 4.0}
MakePotential = Callable[..., Potential]
RandomCrystal = Callable[..., Structure]


def molecule(random_crystal: RandomCrystal, n: int = 5, total_charge: float = 0.0) -> Structure:
    return with_pbc(random_crystal(31, n, total_charge=total_charge), [False] * 3)


def wide_crystal() -> Structure:
    """54 atoms, skewed; half of every height of the cell is more than the cutoff."""
    atoms = rock_salt(3, rattle=0.1, seed=3)
    s = add_edges(make_structure(atoms.numbers, atoms.positions, atoms.cell.array, [True] * 3), 4.0)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    assert heights.min() > 2 * 4.0 + 0.5
    return s


def near_charges(make_potential: MakePotential) -> Potential:
    """Environment charges that know their nearest surroundings only, and follow them closely."""
    model = make_potential("coulomb", charges="environment", backbone=NEAR).requires_grad_(False)
    model.long.charges.network.last.weight *= 10.0
    return model


def at(s: Structure, positions: Tensor) -> Structure:
    charge = float(s.total_charge)
    return add_edges(make_structure(s.numbers, positions, s.cell[0], s.pbc[0], total_charge=charge), 4.0)


def charges_of(model: Potential, s: Structure) -> Tensor:
    return model(s, forces=False)["charges"][:, 0].detach()


def slopes(atom: int, s: Structure, moment: Callable[[Structure], Tensor]) -> Tensor:
    """(3, 3): derivative of a vector by the position of one atom, by five points."""
    columns = []
    for axis in range(3):
        total = torch.zeros(3, dtype=torch.float64)
        for point, weight in POINTS.items():
            positions = s.positions.clone()
            positions[atom, axis] += point * STEP
            total += weight / STEP * moment(at(s, positions))
        columns.append(total)
    return torch.stack(columns, dim=1)


def born(model: Potential, s: Structure) -> Tensor:
    return model(s, forces=False, born_charges=True)["born_charges"]


# --- what they must be


@pytest.mark.parametrize("neutrality", ["background", "shift"])
@pytest.mark.parametrize("pbc", [[True] * 3, SLAB, [False] * 3], ids=str)
def test_charges_of_the_element_are_their_own_born_charges(
    pbc: list[bool], neutrality: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", neutrality=neutrality)
    s = with_pbc(random_crystal(32, 5, total_charge=0.3), pbc)
    q = charges_of(model, s)
    assert float(q.abs().min()) > 0.1
    torch.testing.assert_close(born(model, s), q[:, None, None] * torch.eye(3).double(), rtol=0, atol=0)


@pytest.mark.parametrize(("charges", "neutrality"), [("environment", "shift"), ("equilibration", "background")])
def test_born_charges_of_a_molecule_are_slopes_of_its_dipole(
    charges: str, neutrality: str, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges, neutrality=neutrality).requires_grad_(False)
    s = molecule(random_crystal)
    tensors = born(model, s)
    unit = torch.eye(3).double()
    # the flow of charge is a good part of them
    assert float((tensors - charges_of(model, s)[:, None, None] * unit).abs().max()) > 0.03
    for atom in range(s.num_nodes):
        expected = slopes(atom, s, lambda moved: dipoles(moved, charges_of(model, moved))[0])
        assert largest(tensors[atom], expected) < SLOPE_TOLERANCE


def test_the_moving_atom_is_the_origin_where_the_total_charge_changes(
    random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model, s = make_potential("coulomb", charges="environment").requires_grad_(False), molecule(random_crystal)
    tensors = born(model, s)
    for atom in (0, 3):
        origin = s.positions[atom]
        expected = slopes(atom, s, lambda moved, o=origin: charges_of(model, moved) @ (moved.positions - o))
        assert largest(tensors[atom], expected) < SLOPE_TOLERANCE


@pytest.mark.parametrize("pbc", [[True] * 3, SLAB], ids=str)
def test_born_charges_of_a_crystal_are_slopes_of_its_polarisation_along_a_path(
    pbc: list[bool], make_potential: MakePotential
) -> None:
    """Two points of the path of an atom; the cell is cut open opposite to it, where no charge feels it."""
    model = near_charges(make_potential)
    s = with_pbc(wide_crystal(), pbc)
    atom, repeats = 7, s.pbc[0].double()

    def unfolded(moved: Structure) -> Tensor:
        """Sum of charges times positions, in the cell that has the atom's place in its middle."""
        fractions = torch.linalg.solve(s.cell[0].T, (moved.positions - place).T).T
        return charges_of(model, moved) @ ((fractions - torch.round(fractions) * repeats) @ s.cell[0])

    for step in (0.0, 0.4):
        positions = s.positions.clone()
        positions[atom] += step * torch.tensor([0.5, -0.4, 0.7]).double()
        here, place = at(s, positions), positions[atom]
        tensors = born(model, here)[atom]
        assert largest(tensors, charges_of(model, here)[atom] * torch.eye(3)) > 0.05
        assert largest(tensors, slopes(atom, here, unfolded)) < SLOPE_TOLERANCE


def test_an_atom_in_a_crystal_is_one_inside_a_large_piece_of_it(make_potential: MakePotential) -> None:
    """The piece takes the other road, without images."""
    model, s = near_charges(make_potential), wide_crystal()
    shifts = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=3)), dtype=torch.float64) @ s.cell[0]
    positions = (s.positions + shifts[:, None]).reshape(-1, 3)
    numbers = s.numbers.repeat(len(shifts))
    middle = len(shifts) // 2 * s.num_nodes
    atom = int(torch.linalg.vector_norm(s.positions - s.cell[0].sum(0) / 2, dim=1).argmin())
    near = torch.linalg.vector_norm(positions - positions[middle + atom], dim=1) < 8.5
    piece = add_edges(make_structure(numbers[near], positions[near], torch.zeros(3, 3), [False] * 3), 4.0)
    place = piece.positions.requires_grad_()
    q = model.long.charges(piece, model.short.features(piece, edge_vectors(piece)))[:, 0]
    tensors = born_tensors(model.long.charges, piece, q, place, of=torch.tensor([True]))
    inside = int(near[: middle + atom].sum())
    assert largest(born(model, s)[atom], tensors[inside].detach()) < EXACT


def test_both_roads_agree(random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    """Atom by atom, or all at once, where nothing repeats."""
    model = make_potential("coulomb", charges="environment")
    batch = collate([molecule(random_crystal), molecule(random_crystal, 3)])
    place = batch.positions.requires_grad_()
    q = model.long.charges(batch, model.short.features(batch, edge_vectors(batch)))[:, 0]
    fast = _flow_of_molecules(batch, q, place, create_graph=False)
    assert float(fast.abs().max()) > 0.05
    assert largest(fast, flow_by_atoms(batch, q, place, of=torch.ones(2, dtype=torch.bool))) < EXACT


# --- sum rule and symmetry


@pytest.mark.parametrize("total_charge", [0.0, 0.3])
@pytest.mark.parametrize(("charges", "neutrality"), [("environment", "shift"), ("equilibration", "background")])
def test_acoustic_sum_rule(
    charges: str, neutrality: str, total_charge: float, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    """Charges that add up to the total charge wherever the atoms are have Born charges that do."""
    model = make_potential("coulomb", charges=charges, neutrality=neutrality)
    s = molecule(random_crystal, total_charge=total_charge)
    total = acoustic_sum(s, born(model, s))
    torch.testing.assert_close(total[0], total_charge * torch.eye(3).double(), rtol=0, atol=1e-9)


def test_sum_rule_is_reported_and_enforced(make_potential: MakePotential) -> None:
    model = near_charges(make_potential)
    atoms = rock_salt(2)
    atoms.info["charge"] = 0.4
    atoms.arrays["born_charges"] = np.zeros(5 * len(atoms)).reshape(len(atoms), 5)  # a bad label is of no interest
    raw, whole = born_charges(model, atoms), born_charges(model, atoms, sum_rule=True)
    np.testing.assert_allclose(raw.tensors.sum(axis=0) - 0.4 * np.eye(3), raw.acoustic_sum, atol=EXACT)
    assert np.abs(raw.acoustic_sum).max() > 1e-3
    np.testing.assert_allclose(whole.tensors.sum(axis=0), 0.4 * np.eye(3), atol=EXACT)
    np.testing.assert_array_equal(whole.acoustic_sum, raw.acoustic_sum)
    np.testing.assert_allclose(np.ptp(raw.tensors - whole.tensors, axis=0), 0.0, atol=EXACT)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("charges", "pbc"), [("environment", True), ("equilibration", False)])
def test_rotation_and_reflection(
    charges: str, pbc: bool, mirror: bool, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges)
    s = with_pbc(random_crystal(33, 6), [pbc] * 3)
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn = torch.from_numpy(-q if (np.linalg.det(q) < 0) != mirror else q)
    turned = add_edges(make_structure(s.numbers, s.positions @ turn, s.cell[0] @ turn, [pbc] * 3), 4.0)
    assert largest(born(model, turned), turn.T @ born(model, s) @ turn) < 1e-9


def test_translation_wrapping_and_permutation(random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model, s = make_potential("coulomb", charges="environment"), random_crystal(33, 6)
    order = torch.tensor([3, 0, 2, 5, 1, 4])
    moved = s.positions + torch.tensor([4.0, -7.0, 0.3]) + 2.0 * s.cell[0, 1] * (order % 2)[:, None]
    other = add_edges(make_structure(s.numbers[order], moved[order], s.cell[0], [True] * 3), 4.0)
    assert largest(born(model, other), born(model, s)[order]) < 1e-9


# --- images


@pytest.mark.parametrize("pbc", [[True] * 3, SLAB, [True, False, True], [False] * 3], ids=str)
def test_nearest_images_are_those_of_a_search(pbc: list[bool], random_cell: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    flags = np.array(pbc)
    for seed in range(4):
        cell = random_cell(seed, 60.0, left_handed=seed % 2 == 1)
        cell[1] += 2.0 * cell[0] - cell[2]  # the same lattice, badly described
        vectors = rng.uniform(-1.5, 1.5, (50, 3)) @ cell
        steps = [range(-7, 8) if flag else (0,) for flag in flags]
        images = vectors[:, None] + np.array(list(product(*steps))) @ cell
        lengths = np.linalg.norm(images, axis=2)
        expected = images[np.arange(50), lengths.argmin(axis=1)]
        found = _Images(torch.from_numpy(cell), torch.tensor(pbc)).nearest(torch.from_numpy(vectors))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_equally_near_images_count_alike() -> None:
    """Half a cell away along x there is as much on the left as on the right."""
    images = _Images(4.0 * torch.eye(3).double(), torch.tensor([True] * 3))
    vectors = torch.tensor([[2.0, 0.5, 0.0], [2.0, -2.0, 1.0], [5.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(images.nearest(vectors), expected, rtol=0, atol=1e-12)


# --- batches, derivatives


def test_batch_is_single_and_only_what_was_asked_for(
    random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges="environment")
    parts = [random_crystal(34, 4), molecule(random_crystal), random_crystal(35, 6), molecule(random_crystal, 3)]
    whole = model(collate(parts), born_charges=torch.tensor([True, True, True, False]))
    expected = torch.cat([born(model, s) for s in parts[:3]])
    assert largest(whole["born_charges"][:15], expected) < 1e-10
    assert bool(whole["born_charges"][15:].isnan().all())
    assert not whole["born_charges"].requires_grad
    torch.testing.assert_close(whole["forces"], model(collate(parts))["forces"], rtol=0, atol=1e-12)


def test_equilibrated_molecules_beside_crystals(random_crystal: RandomCrystal, make_potential: MakePotential) -> None:
    model = make_potential("coulomb", charges="equilibration")
    parts = [random_crystal(34, 4), molecule(random_crystal)]
    whole = model(collate(parts), born_charges=torch.tensor([False, True]))
    assert largest(whole["born_charges"][4:], born(model, parts[1])) < 1e-8
    torch.testing.assert_close(whole["forces"], model(collate(parts))["forces"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("charges", "pbc"),
    [("embedding", True), ("environment", True), ("environment", False), ("equilibration", False)],
)
def test_gradient_of_a_loss_of_born_charges_by_parameters(
    charges: str, pbc: bool, random_crystal: RandomCrystal, make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges)
    s = with_pbc(random_crystal(36, 4), [pbc] * 3)
    target = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(create_graph: bool) -> Tensor:
        output = model(s, born_charges=True, create_graph=create_graph)
        return ((output["born_charges"] - target) ** 2).sum()

    named = dict(model.named_parameters())
    names = ["long.charges.values"]
    if charges != "embedding":
        names += ["long.charges.network.first.weight", "short.backbone.embedding.weight"]
    gradients = torch.autograd.grad(loss(create_graph=True), [named[name] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        parameter, size = named[name], float(torch.linalg.vector_norm(gradient))
        assert size > 1e-3, name
        start, slope, h = parameter.detach().clone(), 0.0, 1e-3
        for point, weight in POINTS.items():
            with torch.no_grad():
                parameter.copy_(start + point * h * gradient / size)
            slope += weight / h * float(loss(create_graph=False))
        with torch.no_grad():
            parameter.copy_(start)
        assert slope == pytest.approx(size, rel=PARAMETER_TOLERANCE), name


# --- refusals


@pytest.mark.parametrize(("charges", "neutrality"), [("equilibration", "background"), ("environment", "shift")])
@pytest.mark.parametrize("pbc", [[True] * 3, SLAB], ids=str)
def test_charges_that_flow_through_a_crystal_are_refused(
    charges: str, neutrality: str, pbc: list[bool], make_potential: MakePotential
) -> None:
    model = make_potential("coulomb", charges=charges, neutrality=neutrality)
    atoms = rock_salt(1)
    atoms.pbc = pbc
    with pytest.raises(StructureError, match="has no origin there: set pbc to False for a molecule, or choose") as e:
        born_charges(model, atoms)
    assert "\n" not in str(e.value)


def test_a_model_without_charges_is_refused(make_potential: MakePotential) -> None:
    with pytest.raises(ConfigError, match="need a model with charges"):
        born_charges(make_potential("none"), rock_salt(1))


def test_one_atom(make_potential: MakePotential) -> None:
    """Alone it has no edges, and nothing to be differentiated by."""
    model = make_potential("coulomb", charges="environment")
    found = born_charges(model, Atoms("Na"))
    np.testing.assert_array_equal(found.tensors[0], found.tensors[0, 0, 0] * np.eye(3))
