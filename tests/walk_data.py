"""What the walk of docs/first_steps.md begins with: a folder of finished calculations, and crystals with a property."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.units import GPa

from lrpot import LRCalculator

VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>
 <parameters></parameters>
 <atominfo><array name="atoms"><set>
{species}
 </set></array></atominfo>
 <structure name="initialpos"><crystal><varray name="basis">
{cell}
 </varray></crystal><varray name="positions">
{positions}
 </varray></structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy">{energy}</i><i name="e_0_energy">{energy}</i></energy></scstep>
  <structure><crystal><varray name="basis">
{cell}
  </varray></crystal><varray name="positions">
{positions}
  </varray></structure>
  <varray name="forces">
{forces}
  </varray>
  <varray name="stress">
{stress}
  </varray>
  <energy><i name="e_fr_energy">{energy}</i></energy>
 </calculation>
</modeling>
"""


def write_vasprun(path: Path, atoms: Atoms) -> None:
    """A calculation of one step as VASP writes it: what ASE reads of it, and no more."""

    def rows(values: np.ndarray) -> str:
        return "\n".join(f"<v>{' '.join(f'{value:.12f}' for value in row)}</v>" for row in values)

    path.parent.mkdir(parents=True)
    text = VASPRUN.format(
        species="\n".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in atoms.symbols),
        cell=rows(atoms.cell.array),
        positions=rows(atoms.get_scaled_positions()),
        energy=f"{atoms.get_potential_energy():.10f}",
        forces=rows(atoms.get_forces()),
        stress=rows(-10.0 / GPa * atoms.get_stress(voigt=False)),  # kbar, positive under pressure
    )
    path.write_text(text, encoding="ascii")


def write_calculations(folder: Path, n: int) -> None:
    """dft/0000/vasprun.xml, ...: rattled and strained NaCl of 16 atoms, labelled by a model that comes with lrpot."""
    rng = np.random.default_rng(0)
    calculator = LRCalculator("nacl.pt", stress=True)
    for number in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.62) * 2
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0.0, 0.01, (3, 3))), scale_atoms=True)
        atoms.rattle(0.08, seed=number)
        atoms.calc = calculator
        write_vasprun(folder / "dft" / f"{number:04d}" / "vasprun.xml", atoms)


def write_crystals(folder: Path, n: int) -> None:
    """crystals/id_prop.csv beside CIF files, and candidates/: salts with a number that falls with their volume."""
    rng = np.random.default_rng(1)
    rows = []
    (folder / "crystals").mkdir()
    (folder / "candidates").mkdir()
    for number in range(n):
        symbols = rng.choice(["Li", "Na", "K"]) + rng.choice(["F", "Cl", "Br"])
        atoms = bulk(symbols, "rocksalt", a=rng.uniform(4.0, 6.5))
        training = number < 0.8 * n
        ase.io.write(folder / ("crystals" if training else "candidates") / f"{symbols}-{number}.cif", atoms)
        if training:
            rows.append(f"{symbols}-{number},{300.0 / atoms.get_volume():.6f}")
    (folder / "crystals" / "id_prop.csv").write_text("id,gap\n" + "\n".join(rows) + "\n", encoding="ascii")
