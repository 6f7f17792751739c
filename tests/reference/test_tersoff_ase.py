"""The classical potential of GaN beside ASE's plain loops, with the same published parameters."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atom, Atoms
from ase.build import bulk
from ase.calculators.tersoff import Tersoff as Plain
from ase.calculators.tersoff import TersoffParameters

from lrpot.data.builders.gan import CLASSICAL
from lrpot.data.builders.gan_cells import PHASES
from lrpot.data.builders.tersoff import PAIRS, Tersoff

ENERGY_TOLERANCE = 1e-7  # relative: ASE expands the bond order where it is close to a limit
FORCE_TOLERANCE = 5e-6  # eV/A, the same
AT_REST = 2e-4  # eV/A^3: made up for by 1e-4 A of a lattice constant


def plain() -> Plain:
    """[i, j, k]: bond order by the pair (i, k); exponentials are those of the pair (i, j), where k = j."""
    parameters = {}
    for i, j in PAIRS:
        for k in ("Ga", "N"):
            bond, third = PAIRS[i, j], PAIRS[i, k]
            parameters[i, j, k] = TersoffParameters(
                m=1.0,
                gamma=third.gamma,
                lambda3=third.l3,
                c=third.c,
                d=third.d,
                h=third.h,
                n=1.0,
                beta=1.0,
                lambda2=bond.l2,
                B=bond.B,
                R=third.R,
                D=third.D,
                lambda1=bond.l1,
                A=bond.A,
            )
    return Plain(parameters)


def disordered(seed: int) -> Atoms:
    """A skewed cell with a vacancy, antisites and a split interstitial."""
    atoms = bulk("GaN", "wurtzite", a=3.18, c=5.19) * (2, 2, 2)
    atoms.rattle(0.12, seed=seed)
    atoms.symbols[3], atoms.symbols[4] = "N", "Ga"
    atoms.append(Atom("N", atoms.positions[5] + [1.2, 0.3, 0.2]))
    del atoms[9]
    skew = np.eye(3) + 0.03 * np.random.default_rng(seed).standard_normal((3, 3))
    atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    return atoms


@pytest.mark.parametrize("seed", range(3))
def test_energy_and_forces_are_those_of_ase(seed: int) -> None:
    atoms = disordered(seed)
    results = []
    for calculator in (plain(), Tersoff()):
        atoms.calc = calculator
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert results[1][0] == pytest.approx(results[0][0], rel=ENERGY_TOLERANCE)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=FORCE_TOLERANCE)


@pytest.mark.parametrize("phase", ["wurtzite", "zincblende"])
def test_its_lattices_are_at_rest(phase: str) -> None:
    """The cells in which it moves atoms are stressed by nothing."""
    atoms = PHASES[phase].crystal(CLASSICAL[phase])
    atoms.calc = plain()
    np.testing.assert_allclose(atoms.get_stress(), 0, atol=AT_REST)
    np.testing.assert_allclose(atoms.get_forces(), 0, atol=1e-3)
