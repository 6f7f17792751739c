"""Learn a property of crystals, predict it for others, and list the best of them.

    python examples/04_crystal_properties.py [--encoder statistics] [--out runs/salts]

The property is one that can be computed at once: the electrostatic energy of a salt with ions of charge +-1 or +-2 e.
Its crystals and numbers are written as one writes one's own, id_prop.csv beside CIF files. The same from the command
line:

    lrpot fit runs/salts/crystals/id_prop.csv --encoder statistics --out runs/salts/fit
    lrpot screen runs/salts/fit/model.pt runs/salts/candidates --where "energy < -15" --top 5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.io.ase import AseAtomsAdaptor

from lrpot import fit, load, predict
from lrpot.errors import LrpotError
from lrpot.properties.screening import select

CATIONS = {"Li": 1, "Na": 1, "K": 1, "Mg": 2, "Ca": 2, "Sr": 2}
ANIONS = {"F": -1, "Cl": -1, "Br": -1, "O": -2, "S": -2, "Se": -2}
PROTOTYPES = ("rocksalt", "cesiumchloride", "zincblende")
DISTANCES = (1.9, 3.2)  # A, from cation to anion
NEAREST = {
    "rocksalt": 1 / 2,
    "cesiumchloride": 3**0.5 / 2,
    "zincblende": 3**0.5 / 4,
}  # the same over the lattice constant


def main() -> None:
    arguments = parse()
    rng = np.random.default_rng(0)

    # 1. Crystals with a number each, and candidates without.
    table = write_crystals(arguments.out / "crystals", arguments.crystals, rng)
    write_crystals(arguments.out / "candidates", arguments.crystals // 3, rng)

    # 2. Fit: a tenth of the crystals says when to stop, another tenth tests.
    settings = {"properties.encoder.name": arguments.encoder, "training.max_epochs": arguments.epochs}
    result = fit(table, out=arguments.out / "fit", settings=settings, overwrite=arguments.overwrite)

    # 3. Predict the candidates, and list those of the lowest energy; of these salts the truth is known.
    found = predict(load(result.path), arguments.out / "candidates")
    predicted = found.columns()["energy"]
    truth = np.array([electrostatic_energy(row.atoms) for row in found.rows])
    print(f"{len(predicted)} candidates, mean absolute error {np.abs(predicted - truth).mean():.2f} eV/atom")
    for place in select(found.columns(), "energy < 0", top=5):
        print(f"{found.rows[place].file.stem}: {predicted[place]:.2f} eV/atom, computed {truth[place]:.2f}")


def write_crystals(folder: Path, n: int, rng: np.random.Generator) -> Path:
    """n CIF files, and id_prop.csv with the energy of each; the path of that table."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["id,energy"]
    for number in range(n):
        atoms = random_salt(rng)
        name = f"{atoms.get_chemical_formula()}-{number}"
        ase.io.write(folder / f"{name}.cif", atoms)
        lines.append(f"{name},{electrostatic_energy(atoms):.6f}")
    table = folder / "id_prop.csv"
    table.write_text("\n".join(lines) + "\n", encoding="ascii")
    return table


def random_salt(rng: np.random.Generator) -> Atoms:
    cation = rng.choice(list(CATIONS))
    anion = rng.choice([symbol for symbol, charge in ANIONS.items() if charge == -CATIONS[cation]])
    prototype = rng.choice(PROTOTYPES)
    return bulk(f"{cation}{anion}", prototype, a=rng.uniform(*DISTANCES) / NEAREST[prototype])


def electrostatic_energy(atoms: Atoms) -> float:
    """eV/atom, of point charges, by Ewald's sum."""
    crystal = AseAtomsAdaptor.get_structure(atoms)
    crystal.add_oxidation_state_by_element({symbol: (CATIONS | ANIONS)[symbol] for symbol in set(atoms.symbols)})
    return float(EwaldSummation(crystal).total_energy) / len(atoms)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/salts"), help="directory (default: runs/salts)")
    parser.add_argument(
        "--encoder", default="statistics", help="any that lrpot fit knows, such as cgcnn, regnet (default: statistics)"
    )
    parser.add_argument("--crystals", type=int, default=240, help="to learn from (default: 240)")
    parser.add_argument("--epochs", type=int, default=200, help="at most (default: 200)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in --out")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except LrpotError as error:
        sys.exit(f"error: {error}")
