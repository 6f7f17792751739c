"""Edges that MD uses again are those that would be found anew, and are found anew as seldom as they may be."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from lrpot import LRCalculator
from lrpot.data.neighbours import NeighbourList, add_edges
from lrpot.errors import ConfigError, StructureError
from lrpot.structure import Structure, edge_vectors, make_structure
from tests.helpers_cli import rock_salt, run_cli, save_model, small_model

CUTOFF, SKIN = 4.0, 0.5  # A
SAME = 1e-12  # relative: the same sums in another order
SHEAR = np.array([[0.0, 0.3, 0.0], [0.0, 0.1, -0.2], [0.2, 0.0, 0.0]])


def bare(s: Structure, positions=None, cell=None, pbc=(True, True, True)) -> Structure:
    return make_structure(
        s.numbers, s.positions if positions is None else positions, s.cell[0] if cell is None else cell, pbc
    )


def edges(s: Structure) -> set[tuple[int, ...]]:
    shifts = s.edge_shift.long().tolist()
    found = [(i, j, *n) for j, i, n in zip(*s.edge_index.tolist(), shifts, strict=True)]
    assert len(set(found)) == len(found)
    return set(found)


def check(neighbours: NeighbourList, s: Structure) -> None:
    """`update` gives what `add_edges` gives."""
    updated, expected = neighbours.update(s.clone()), add_edges(s.clone(), neighbours.cutoff)
    assert edges(updated) == edges(expected)
    assert updated.edge_index.dtype == expected.edge_index.dtype
    assert updated.edge_shift.dtype == expected.edge_shift.dtype
    assert torch.equal(updated.edge_index[1], expected.edge_index[1])  # sorted by centre
    assert updated.edge_index.is_contiguous()
    lengths = torch.linalg.vector_norm(edge_vectors(updated), dim=1)
    assert bool((lengths < neighbours.cutoff).all())


@pytest.mark.parametrize("pbc", list(product((False, True), repeat=3)))
def test_atoms_that_wander(pbc: tuple[bool, ...], random_crystal) -> None:
    s = bare(random_crystal(7, 8, left_handed=True, unwrapped=all(pbc)), pbc=pbc)
    neighbours, rng = NeighbourList(CUTOFF, SKIN), np.random.default_rng(0)
    for _ in range(25):
        check(neighbours, s)
        s.positions += torch.from_numpy(rng.normal(scale=0.03, size=(8, 3)))
    assert 2 <= neighbours.rebuilds < 15


def test_edges_are_found_anew_when_an_atom_has_gone_half_the_skin(random_crystal) -> None:
    s = bare(random_crystal(3, 6))
    neighbours = NeighbourList(CUTOFF, SKIN)
    neighbours.update(s.clone())
    push = torch.zeros_like(s.positions)
    # less what all atoms go in common: 5/6 of the push for this atom
    push[2] = torch.tensor([0.6, 0.0, 0.8]) * 6 / 5 * SKIN / 2
    check(neighbours, bare(s, s.positions + 0.999 * push))
    assert neighbours.rebuilds == 1
    check(neighbours, bare(s, s.positions + 1.001 * push))
    assert neighbours.rebuilds == 2


def test_what_all_atoms_do_in_common_costs_nothing(random_crystal) -> None:
    s = bare(random_crystal(3, 6))
    neighbours = NeighbourList(CUTOFF, SKIN)
    for step in range(5):
        check(neighbours, bare(s, s.positions + 3.0 * step))
    assert neighbours.rebuilds == 1


def test_an_atom_wrapped_into_the_cell(random_crystal) -> None:
    """Its shifts are others from then on."""
    s = bare(random_crystal(5, 6))
    neighbours = NeighbourList(CUTOFF, SKIN)
    check(neighbours, s)
    wrapped = s.positions.clone()
    wrapped[3] += s.cell[0, 1]
    check(neighbours, bare(s, wrapped))
    assert neighbours.rebuilds == 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_cell_under_strain(mirrored: bool, random_crystal) -> None:
    """Small strain is within the skin, expansion always is, and every edge is right."""
    s = bare(random_crystal(6, 6, left_handed=mirrored))
    neighbours = NeighbourList(CUTOFF, SKIN)
    amplitudes = np.linspace(0.0, 1.2, 31)
    for t in amplitudes:
        deformation = torch.from_numpy(np.eye(3) + t * SHEAR)
        check(neighbours, bare(s, s.positions @ deformation, s.cell[0] @ deformation))
    assert 3 <= neighbours.rebuilds < 15
    expanding = NeighbourList(CUTOFF, SKIN)
    for t in (1.0, 1.1, 1.5):
        check(expanding, bare(s, t * s.positions, t * s.cell[0]))
    assert expanding.rebuilds == 1


def test_a_compression_by_as_much_as_the_skin(random_crystal) -> None:
    s = bare(random_crystal(6, 6))
    limit = CUTOFF / (CUTOFF + SKIN)
    for factor, rebuilds in ((limit * 1.001, 1), (limit * 0.999, 2)):
        neighbours = NeighbourList(CUTOFF, SKIN)
        for t in (1.0, factor):
            check(neighbours, bare(s, t * s.positions, t * s.cell[0]))
        assert neighbours.rebuilds == rebuilds


def test_a_cell_that_changes_under_atoms_that_stay(random_crystal) -> None:
    s = bare(random_crystal(6, 6))
    neighbours = NeighbourList(CUTOFF, SKIN)
    check(neighbours, s)
    check(neighbours, bare(s, cell=0.9 * s.cell[0]))
    assert neighbours.rebuilds == 2


def test_a_slab_whose_cell_changes(random_crystal) -> None:
    s = bare(random_crystal(6, 6), pbc=(True, True, False))
    neighbours = NeighbourList(CUTOFF, SKIN)
    check(neighbours, s)
    check(neighbours, bare(s, cell=1.02 * s.cell[0], pbc=(True, True, False)))
    assert neighbours.rebuilds == 2


def test_other_crystals(random_crystal) -> None:
    neighbours = NeighbourList(CUTOFF, SKIN)
    a, b, c = (bare(random_crystal(seed, n)) for seed, n in ((1, 6), (2, 6), (3, 5)))
    for s in (a, b, c, a, bare(a, pbc=(True, False, True))):
        check(neighbours, s)
    assert neighbours.rebuilds == 5


def test_one_atom_and_no_edges() -> None:
    neighbours = NeighbourList(CUTOFF, SKIN)
    for length in (3.0, 2.9, 9.0):
        s = make_structure([11], np.zeros((1, 3)), length * np.eye(3), [True] * 3)
        check(neighbours, s)
    assert neighbours.update(s).edge_index.shape == (2, 0)


def test_impossible_geometries_are_refused_and_forgotten(random_crystal) -> None:
    s = bare(random_crystal(2, 4))
    neighbours = NeighbourList(CUTOFF, 10.0)
    check(neighbours, s)
    close = s.positions.clone()
    close[1] = close[0] + 0.05
    for positions, message in (
        (close, r"atoms \d and \d are 0.0866 A apart"),
        (torch.full_like(close, torch.nan), "position of atom 0 is not a finite number"),
    ):
        with pytest.raises(StructureError, match=message):
            neighbours.update(bare(s, positions))
    check(neighbours, s)


@pytest.mark.parametrize("skin", [-0.1, np.inf, np.nan])
def test_impossible_skins_are_refused(skin: float) -> None:
    with pytest.raises(ConfigError, match="A: must be finite and not negative"):
        LRCalculator(small_model(), skin=skin)


# --- MD


def trajectory(skin: float, *, kind: str = "coulomb", steps: int = 40, strained: bool = False) -> tuple[list, int]:
    """Energies, forces and stresses of an MD run of NaCl at some 600 K, and how often edges were found."""
    atoms = rock_salt(rattle=0.05, seed=3)
    model = small_model(kind)
    if model.long is not None:
        model.long.charges.set_values({11: 0.2, 17: -0.2})  # nothing repels these ions at short range
    atoms.calc = LRCalculator(model, skin=skin)
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)) * 1.2)
    dynamics = VelocityVerlet(atoms, 2.0 * units.fs)
    recorded = []
    for step in range(steps):
        dynamics.run(1)
        if step == steps // 2:
            atoms.wrap()
        if step == steps // 2 + 5:
            atoms.positions[1] += [0.4, -0.2, 0.1]
        if strained:  # as a barostat does
            strain = np.eye(3) * (1.0 + 2e-3 * np.sin(step)) + 1e-3 * np.cos(step) * SHEAR
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        recorded.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    return recorded, atoms.calc.neighbours.rebuilds


@pytest.mark.parametrize("strained", [False, True], ids=["constant cell", "barostat"])
@pytest.mark.parametrize("kind", ["coulomb", "none"])
def test_md_is_the_same_with_and_without(kind: str, strained: bool) -> None:
    steps = 40
    plain, none = trajectory(0.0, kind=kind, strained=strained, steps=steps)
    kept, rebuilds = trajectory(SKIN, kind=kind, strained=strained, steps=steps)
    assert none == 0
    assert 2 <= rebuilds < steps / 3  # at the start and where an atom was pushed, at least
    for (e, f, s), (energy, forces, stress) in zip(plain, kept, strict=True):
        assert energy == pytest.approx(e, rel=SAME)
        assert np.abs(forces - f).max() < SAME * np.abs(f).max()
        assert np.abs(stress - s).max() < SAME * np.abs(s).max()


def test_skin_of_the_command(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pt")
    rock_salt().write(tmp_path / "start.extxyz")
    for skin, out in ((0.0, "a.traj"), (0.4, "b.traj")):
        words = ("--steps", 10, "--interval", 5, "--skin", skin, "--out", tmp_path / out)
        assert run_cli("md", model, tmp_path / "start.extxyz", *words) == 0
    one, other = (read(tmp_path / name, index=":") for name in ("a.traj", "b.traj"))
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        assert isinstance(a, Atoms)
        assert np.abs(a.positions - b.positions).max() < SAME
    assert run_cli("md", model, tmp_path / "start.extxyz", "--skin", -1, "--out", tmp_path / "c.traj") == 1
