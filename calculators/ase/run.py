"""A model as an ASE calculator: energy, forces, stress and charges of a crystal, and a short relaxation.

    python calculators/ase/run.py MODEL [CRYSTAL] [--steps 20]

Without a crystal file it takes NaCl in the rock-salt structure, each atom moved by a little from its place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from lrpot import LRCalculator
from lrpot.errors import LrpotError
from lrpot.units import GPA


def main() -> None:
    arguments = parse()
    atoms = rattled_salt() if arguments.crystal is None else ase.io.read(arguments.crystal)
    atoms.calc = LRCalculator(arguments.model, device=arguments.device)
    show(atoms)
    relax(atoms, arguments.steps, arguments.fmax)
    ase.io.write(arguments.out, atoms)
    print(f"wrote {arguments.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file, such as runs/fit/model.pt")
    parser.add_argument("crystal", type=Path, nargs="?", help="any file that ASE reads (default: rattled NaCl)")
    parser.add_argument("--steps", type=int, default=20, help="of the relaxation, at most (default: 20)")
    parser.add_argument("--fmax", type=float, default=0.01, help="largest force that ends it, eV/A (default: 0.01)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("relaxed.extxyz"),
        help="the relaxed crystal; an older file is replaced (default: %(default)s)",
    )
    return parser.parse_args()


def rattled_salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def show(atoms: Atoms) -> None:
    """Everything that a model says about a crystal."""
    stress = atoms.get_stress()  # asked for first, so that one evaluation gives everything
    results = atoms.calc.results
    print(f"{atoms.get_chemical_formula()}, {len(atoms)} atoms")
    print(
        f"energy          {atoms.get_potential_energy():.6f} eV "
        f"({results['energy_short']:.6f} short range, {results['energy_long']:.6f} long range)"
    )
    print(f"largest force   {np.linalg.norm(atoms.get_forces(), axis=1).max():.6f} eV/A")
    print(f"stress          {' '.join(f'{s:.6f}' for s in stress)} eV/A^3 (xx yy zz yz xz xy)")
    print(f"pressure        {-stress[:3].mean() * GPA:.4f} GPa")
    if "charges" in results:
        symbols = np.array(atoms.get_chemical_symbols())
        means = (f"{symbol} {results['charges'][symbols == symbol].mean():+.4f}" for symbol in sorted(set(symbols)))
        print(f"charges         {', '.join(means)} e")


def relax(atoms: Atoms, steps: int, fmax: float) -> None:
    """Move atoms and cell downhill."""
    volume = atoms.get_volume()
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
    converged = optimizer.run(fmax=fmax, steps=steps)
    end = "converged" if converged else f"not yet below {fmax:g} eV/A"
    print(
        f"after {optimizer.nsteps} steps of relaxation ({end}): energy {atoms.get_potential_energy():.6f} eV, "
        f"volume {atoms.get_volume():.3f} A^3, before {volume:.3f} A^3"
    )


if __name__ == "__main__":
    try:
        main()
    except (LrpotError, OSError) as error:
        sys.exit(f"error: {error}")
