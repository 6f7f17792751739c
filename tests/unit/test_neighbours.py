"""Edges against ASE's neighbour list, and the geometries that are refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from lrpot.data.neighbours import add_edges
from lrpot.errors import StructureError
from lrpot.structure import Structure, edge_vectors, make_structure

VECTOR_TOLERANCE = 1e-12  # A
ALL_PBC = list(product((False, True), repeat=3))


def graph(positions, cell, pbc, cutoff: float, numbers=None) -> Structure:
    numbers = [11] * len(positions) if numbers is None else numbers
    return add_edges(make_structure(numbers, positions, cell, pbc), cutoff)


def check_against_ase(positions, cell, pbc, cutoff: float) -> int:
    """Edges as sets of (i, j, S) and their vectors; returns how many there are."""
    s = graph(positions, cell, pbc, cutoff)
    atoms = Atoms(numbers=[11] * len(positions), positions=positions, cell=cell, pbc=pbc)
    i, j, shifts, vectors = neighbor_list("ijSD", atoms, cutoff)
    expected = {(a, b, *n): d for a, b, n, d in zip(i.tolist(), j.tolist(), shifts.tolist(), vectors, strict=True)}
    assert len(expected) == len(i)
    neighbour, centre = s.edge_index.tolist()
    ours = s.edge_shift.numpy().astype(int).tolist()
    found = {(a, b, *n): d for a, b, n, d in zip(centre, neighbour, ours, edge_vectors(s).numpy(), strict=True)}
    assert len(found) == len(centre)
    assert found.keys() == expected.keys()
    for edge, vector in expected.items():
        np.testing.assert_allclose(found[edge], vector, rtol=0, atol=VECTOR_TOLERANCE)
    # the promises of the docstring
    assert np.array_equal(s.edge_shift.numpy(), np.array(ours).reshape(-1, 3))
    assert (np.diff(centre) >= 0).all()
    lengths = np.linalg.norm(edge_vectors(s).numpy(), axis=1)
    assert ((lengths > 0) & (lengths < cutoff)).all()
    assert {(b, a, *(-x for x in n)) for a, b, *n in found} == found.keys()
    return len(found)


@pytest.mark.parametrize("cutoff", [3.0, 5.5])
@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("unwrapped", [False, True])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_periodic_crystals(cutoff: float, left_handed: bool, unwrapped: bool, n: int, random_crystal) -> None:
    s = random_crystal(n, n, left_handed=left_handed, unwrapped=unwrapped)
    count = check_against_ase(s.positions.numpy(), s.cell[0].numpy(), [True] * 3, cutoff)
    assert count > 10 or cutoff == 3.0


def test_cell_much_smaller_than_the_cutoff(random_cell) -> None:
    cell = random_cell(3, 20.0)
    positions = np.array([[0.1, 0.2, 0.3], [0.6, 0.55, 0.8]]) @ cell
    assert check_against_ase(positions, cell, [True] * 3, 9.0) > 500


def test_strongly_skewed_cell(random_cell) -> None:
    cell = np.array([[1, 0, 0], [5, 1, 0], [-4, 6, 1]]) @ random_cell(4, 80.0)
    assert np.linalg.cond(cell) > 40
    positions = np.random.default_rng(0).random((4, 3)) @ cell
    sheared = check_against_ase(positions, cell, [True] * 3, 5.0)
    assert sheared == check_against_ase(positions, random_cell(4, 80.0), [True] * 3, 5.0)


def test_an_atom_sees_its_own_images() -> None:
    s = graph([[0.3, 0.1, 0.2]], 3.0 * np.eye(3), [True] * 3, 3.1)
    shifts = {tuple(n) for n in s.edge_shift.int().tolist()}
    assert shifts == {n for n in product((-1, 0, 1), repeat=3) if sum(map(abs, n)) == 1}
    assert s.edge_index.tolist() == [[0] * 6, [0] * 6]


@pytest.mark.parametrize("pbc", ALL_PBC, ids=str)
@pytest.mark.parametrize("left_handed", [False, True])
def test_mixed_periodicity(pbc: tuple[bool, ...], left_handed: bool, random_crystal) -> None:
    s = random_crystal(5, 7, left_handed=left_handed, unwrapped=True)
    positions = s.positions.numpy()
    if not any(pbc):
        positions = random_crystal(5, 7, left_handed=left_handed).positions.numpy()
    count = check_against_ase(positions, s.cell[0].numpy(), pbc, 7.0)
    assert count > 0


@pytest.mark.parametrize("pbc", [pbc for pbc in ALL_PBC if not all(pbc)], ids=str)
def test_lattice_vectors_of_length_zero_where_it_is_not_periodic(pbc: tuple[bool, ...], random_crystal) -> None:
    s = random_crystal(6, 7)
    cell = s.cell[0].numpy().copy()
    whole = graph(s.positions.numpy(), cell, pbc, 6.0)
    cell[~np.array(pbc)] = 0.0
    # ASE completes such a cell in its own way; pairs and vectors do not depend on it
    assert check_against_ase(s.positions.numpy(), cell, pbc, 6.0) == whole.edge_index.shape[1]


@pytest.mark.parametrize("axis", range(3))
def test_a_chain_or_sheet_along_any_direction(axis: int, random_crystal) -> None:
    """The vectors that stand in for missing ones must not lie along those that are there."""
    positions = random_crystal(6, 7).positions.numpy()
    for first, second in [(axis, (axis + 1) % 3), (axis, (axis + 2) % 3)]:
        chain = np.zeros((3, 3))
        chain[first, second] = 5.0
        pbc = np.arange(3) == first
        assert check_against_ase(positions, chain, pbc, 6.0) > 7
        sheet = chain.copy()
        sheet[second, first] = 6.0
        assert check_against_ase(positions, sheet, pbc | (np.arange(3) == second), 6.0) > 7


@pytest.mark.parametrize("pbc", [(True, False, True), (False, False, True)], ids=str)
def test_no_image_along_a_direction_that_is_not_periodic(pbc: tuple[bool, ...], random_crystal) -> None:
    s = random_crystal(7, 6)
    shifts = graph(s.positions.numpy(), s.cell[0].numpy(), pbc, 8.0).edge_shift.numpy()
    assert not shifts[:, ~np.array(pbc)].any()
    assert shifts[:, np.array(pbc)].any()


def test_atoms_out_of_each_others_reach_have_no_edges() -> None:
    s = graph([[0, 0, 0], [0, 0, 9.0]], np.zeros((3, 3)), [False] * 3, 5.0)
    assert s.edge_index.shape == (2, 0)
    assert s.edge_shift.shape == (0, 3)
    assert edge_vectors(s).shape == (0, 3)


def test_input_arrays_are_not_changed(random_crystal) -> None:
    s = random_crystal(8, 5, unwrapped=True)
    positions, cell = s.positions.clone(), s.cell.clone()
    add_edges(s, 6.0)
    assert s.positions.equal(positions)
    assert s.cell.equal(cell)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.diag([5.1, 2100.0, 2100.0]), [True, True, True]),
        (np.diag([5.1, 5.1, 9e5]), [True, True, True]),
        ([[0.0, 5.64, 5.64], [9e5, 0.0, 2.82], [2.82, 2.82, 0.0]], [True, True, True]),
        (np.zeros((3, 3)), [False, False, False]),
    ],
)
def test_long_and_thin_crystals(cell, pbc: list[bool]) -> None:
    """With these cells vesin divides by zero, which ends the process."""
    positions = [[0.0, 0.0, 0.0], [2.0, 0.1, 1.0], [1.0, 2000.0, 9e5]]
    assert check_against_ase(positions, cell, pbc, 5.0) > 0


def test_atoms_many_cells_away() -> None:
    cell = np.array([[5.1, 0.0, 0.0], [0.5, 5.3, 0.0], [0.2, 0.1, 5.2]])
    near = np.array([[0.0, 0.0, 0.0], [2.0, 0.1, 2.5]])
    far = near + np.array([[0, 0, 0], [100_000, -40_000, 100_001]]) @ cell
    s = graph(far, cell, [True] * 3, 5.0)
    lengths = np.sort(np.linalg.norm(edge_vectors(s).numpy(), axis=1))
    expected = np.sort(np.linalg.norm(edge_vectors(graph(near, cell, [True] * 3, 5.0)).numpy(), axis=1))
    # positions of 5e5 A have ten digits behind the point
    np.testing.assert_allclose(lengths, expected, rtol=0, atol=1e-9)


# --- refusals

CELL = np.diag([5.0, 6.0, 7.0])
NAN = float("nan")


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "message"),
    [
        (np.empty((0, 3)), CELL, True, "has no atoms"),
        ([[0, 0, 0], [1.0, NAN, 0]], CELL, True, "position of atom 1 is not a finite number"),
        ([[0, 0, 0], [np.inf, 0, 0]], CELL, False, "position of atom 1 is not a finite number"),
        ([[0, 0, 0]], [[5, 0, 0], [0, NAN, 0], [0, 0, 5]], True, "cell holds a number that is not finite"),
        ([[0, 0, 0]], np.zeros((3, 3)), True, "no volume"),
        ([[0, 0, 0]], [[5, 0, 0], [0, 5, 0], [5, 5, 0]], True, "no volume"),
        ([[0, 0, 0]], [[5, 0, 0], [0, 5, 0], [0, 0, 0]], True, "5, 5, 0 A span nothing"),
        ([[0, 0, 0]], [[5, 0, 0], [5, 0, 0], [0, 0, 5]], (True, True, False), "no volume"),
        ([[0, 0, 0], [0.01, 0, 0]], CELL, True, r"atoms 0 and 1 are 0\.01 A apart"),
        ([[0, 0, 0], [0, 0, 0]], CELL, True, r"atoms 0 and 1 are 0 A apart"),
        ([[0, 0, 0], [0, 0, 0]], CELL, False, r"atoms 0 and 1 are 0 A apart"),
        # the overlap is with an image, across the boundary
        ([[0.02, 1, 1], [4.97, 1, 1]], CELL, True, r"atoms 0 and 1 are 0\.05 A apart"),
        ([[0, 0, 0]], np.diag([0.05, 5, 5]), True, r"atoms 0 and 0 are 0\.05 A apart"),
        (np.random.default_rng(0).random((1000, 3)), 0.5 * np.eye(3), True, "1000 atoms share a cell of 0.125"),
        (
            [[0, 0, 0]],
            0.002 * np.eye(3),
            (True, True, False),
            r"1 atoms in .* neighbours each within 4 A; check the units",
        ),
        ([[0, 0, 0], [0, 0, 2e6]], CELL, False, r"2e\+06 A long; check its units"),
        ([[0, 0, 0]], np.diag([5, 5, 2e6]), True, r"2e\+06 A long; check its units"),
    ],
)
def test_refusals(positions, cell, pbc, message: str) -> None:
    pbc = [pbc] * 3 if isinstance(pbc, bool) else pbc
    with pytest.raises(StructureError, match=message) as error:
        graph(positions, cell, pbc, 4.0)
    assert "\n" not in str(error.value)


def test_the_same_cell_is_accepted_where_the_flat_direction_is_not_periodic() -> None:
    graph([[0, 0, 0]], [[5, 0, 0], [0, 5, 0], [0, 0, 0]], (True, True, False), 4.0)
