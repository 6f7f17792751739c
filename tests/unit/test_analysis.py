"""What is read off MD, against cases that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk

from lrpot.analysis import (
    dielectric_ratio,
    diffusion,
    mean_square_displacement,
    pair_distribution,
    unwrapped,
    vacant_sites,
    velocity_spectrum,
)
from lrpot.units import COULOMB_CONSTANT


def test_pairs_of_a_crystal_stand_at_its_shells() -> None:
    atoms = bulk("NaCl", "rocksalt", a=6.0)  # the cutoff is longer than the cell
    width = 0.1
    for pair, shells in ((("Na", "Cl"), {3.0: 6, 27**0.5: 8}), (("Na", "Na"), {18**0.5: 12, 6.0: 6})):
        r, g = pair_distribution([atoms, atoms], *pair, 6.5, width)
        shell_volume = 4 / 3 * np.pi * ((r + width / 2) ** 3 - (r - width / 2) ** 3)
        counts = g * shell_volume / atoms.get_volume()
        assert np.flatnonzero(counts > 1e-9).tolist() == [int(d / width + 1e-9) for d in shells]
        np.testing.assert_allclose(counts[counts > 1e-9], list(shells.values()))


def test_pairs_of_an_ideal_gas_are_everywhere_alike() -> None:
    rng = np.random.default_rng(0)
    cell = np.array([[8.0, 0, 0], [2.0, 9.0, 0], [1.0, -2.0, 10.0]])
    frames = [Atoms("H60", scaled_positions=rng.random((60, 3)), cell=cell, pbc=True) for _ in range(15)]
    r, g = pair_distribution(frames, "H", "H", 6.0, 0.5)
    # counts in a bin are Poissonian, and pairs are counted twice; an atom has one other less than there are atoms
    counts = 15 * 60 * 59 / 720.0 * 4 * np.pi * r**2 * 0.5
    assert (np.abs(g - 59 / 60) < 5 * np.sqrt(2 / counts)).all()


def test_paths_cross_the_cell_without_jumps() -> None:
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0.5, -1.0, 7.0]])
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=0.4, size=(50, 4, 3))
    steps -= steps.mean(axis=1, keepdims=True)
    true = rng.random((4, 3)) @ cell + np.cumsum(steps, axis=0)
    frames = []
    for places in true:
        atoms = Atoms("H4", positions=places, cell=cell, pbc=True)
        atoms.wrap()
        frames.append(atoms)
    assert np.abs(np.diff([a.positions for a in frames], axis=0)).max() > 3.0
    found = unwrapped(frames)
    np.testing.assert_allclose(found - found[0], true - true[0], atol=1e-10)


def test_a_cell_that_breathes_and_a_centre_that_drifts_move_nothing() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    frames = []
    for step in range(20):
        moved = atoms.copy()
        moved.set_cell(atoms.cell * (1 + 0.02 * np.sin(step)), scale_atoms=True)
        moved.positions += 0.1 * step
        frames.append(moved)
    np.testing.assert_allclose(mean_square_displacement(unwrapped(frames)), 0.0, atol=1e-12)


def test_displacements_are_those_of_all_pairs() -> None:
    paths = 1e3 + np.cumsum(np.random.default_rng(0).normal(size=(30, 5, 3)), axis=0)
    expected = [0.0]
    expected += [float(((paths[lag:] - paths[:-lag]) ** 2).sum(axis=2).mean()) for lag in range(1, 30)]
    np.testing.assert_allclose(mean_square_displacement(paths), expected, rtol=1e-9, atol=1e-9)


def test_a_random_walk_diffuses() -> None:
    sigma, timestep, n_steps, n_atoms = 0.1, 20.0, 400, 800  # A, fs
    steps = np.random.default_rng(0).normal(scale=sigma, size=(n_steps, n_atoms, 3))
    time = timestep * np.arange(n_steps)
    found = diffusion(time, mean_square_displacement(np.cumsum(steps, axis=0)))
    # <r^2> = 3 sigma^2 per step = 6 D t
    assert found == pytest.approx(3 * sigma**2 / (6 * timestep / 1000), rel=0.05)


def test_a_vibration_has_its_frequency_and_weight() -> None:
    timestep, n = 2.0, 4000  # fs; 8 ps
    time = timestep * np.arange(n) / 1000
    slow, fast = 3.0, 7.5  # THz
    velocities = np.zeros((n, 2, 3))
    velocities[:, 0, 1] = np.cos(2 * np.pi * slow * time)
    velocities[:, 1, 2] = 0.5 * np.sin(2 * np.pi * fast * time)
    f, density = velocity_spectrum(velocities, np.array([1.0, 12.0]), timestep)
    assert density.sum() * (f[1] - f[0]) == pytest.approx(1.0)
    low, high = (density[np.abs(f - centre) < 1.0].sum() * f[1] for centre in (slow, fast))
    # kinetic energies are as 1 to 12/4
    assert (low, high) == pytest.approx((0.25, 0.75), abs=1e-3)
    assert f[np.argmax(density)] == pytest.approx(fast, abs=f[1])


def test_a_charge_on_a_spring_polarises_as_it_fluctuates() -> None:
    """Equipartition, <x^2> = k T / spring, gives the polarisability q^2 / spring, of which eps - 1 follows."""
    temperature, charge, spring, volume = 300.0, 0.8, 5.0, 40.0  # K, e, eV/A^2, A^3
    width = np.sqrt(units.kB * temperature / spring)
    dipoles = 3.0 + charge * np.random.default_rng(0).normal(scale=width, size=(50_000, 3))
    expected = 1 + 4 * np.pi * COULOMB_CONSTANT * charge**2 / (spring * volume)
    assert dielectric_ratio(dipoles, volume, temperature) == pytest.approx(expected, rel=0.01)


def test_a_vacancy_is_where_an_atom_has_arrived_from() -> None:
    """Atom 0 goes half way and back, then all the way, across the edge of the cell."""
    cell = 8.0 * np.eye(3)
    sites = np.array([[x, y, 0.0] for x in (0.0, 4.0) for y in (0.0, 4.0)])
    atoms = sites[[0, 1, 2]]
    way = np.array([0.0, 0.2, 0.5, 0.3, 0.0, 0.4, 0.6, 0.9, 1.0])
    paths = np.repeat(atoms[None], len(way), axis=0)
    paths[:, 1] -= way[:, None] * np.array([4.0, 0.0, 0.0])  # from (0, 4) by way of (-2, 4) to (-4, 4), which is (4, 4)
    assert vacant_sites(paths, sites, cell, 1.5).tolist() == [3, 3, 3, 3, 3, 3, 3, 1, 1]
